// Progress of one operation, told at a bearable rate.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>

#include "torchsnapshot/io_options.h"

namespace torchsnapshot {

/// Adds up bytes and calls the observer, one call at a time, at most ten times a second. The observer outlives the
/// meter. Thread-safe.
class ProgressMeter {
 public:
  ProgressMeter(std::uint64_t total, const ProgressFn& observer) : total_(total), observer_(observer) {}

  void add(std::uint64_t bytes);
  /// The last call, made however short ago the one before was.
  void finish();

 private:
  const std::uint64_t total_;
  const ProgressFn& observer_;
  std::mutex mutex_;
  std::uint64_t done_ = 0;
  std::chrono::steady_clock::time_point next_{};
};

}  // namespace torchsnapshot
