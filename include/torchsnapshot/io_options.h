// Limits and observers common to all operations.
#pragma once

#include <cstdint>
#include <functional>
#include <stop_token>
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

/// Limits and observers common to all operations. The defaults suit a machine of its own.
struct IoOptions {
  /// Bytes of buffers in use at once; 0: 60 % of the available memory, at most 32 GB.
  std::uint64_t memory_budget_bytes = 0;
  /// Blocks in flight at once.
  std::uint32_t io_concurrency = 16;
  /// A take writes checksums beside the data, and whatever reads verifies what it reads by them, the metadata included.
  bool checksums = true;
  ProgressFn on_progress;
  NoticeFn on_notice;
  /// Called on the calling thread about ten times a second while it waits. What it throws ends the operation, as a
  /// stop does, and comes out of it.
  std::function<void()> poll;
  std::stop_token stop;
};

}  // namespace torchsnapshot
