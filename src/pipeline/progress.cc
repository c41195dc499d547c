#include "pipeline/progress.h"

namespace torchsnapshot {

void ProgressMeter::add(std::uint64_t bytes) {
  if (!observer_) return;
  const std::lock_guard lock(mutex_);
  done_ += bytes;
  const auto now = std::chrono::steady_clock::now();
  if (now < next_) return;
  next_ = now + std::chrono::milliseconds(100);
  observer_({.bytes_done = done_, .bytes_total = total_});
}

void ProgressMeter::finish() {
  if (!observer_) return;
  const std::lock_guard lock(mutex_);
  observer_({.bytes_done = done_, .bytes_total = total_});
}

}  // namespace torchsnapshot
