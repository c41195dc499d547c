// What the engine tells an observer while it works.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace torchsnapshot {

/// How far a take or restore has come.
struct Progress {
  std::uint64_t bytes_done = 0;
  std::uint64_t bytes_total = 0;
};

/// Called from engine threads, one call at a time, at most about ten times a second and once at the end.
/// Must not throw and must not call the engine.
using ProgressFn = std::function<void(const Progress&)>;

/// Something worth telling that is no error, such as a fallback that costs speed. Called like ProgressFn.
using NoticeFn = std::function<void(const std::string& message)>;

}  // namespace torchsnapshot
