#include "cloud/transfer_gate.h"

namespace torchsnapshot {

void TransferGate::set_limit(std::size_t limit) {
  {
    const std::lock_guard lock(mutex_);
    limit_ = limit;
  }
  freed_.notify_all();
}

TransferGate::Place TransferGate::enter(const std::stop_token& stop, std::chrono::milliseconds most) {
  std::unique_lock lock(mutex_);
  freed_.wait_for(lock, stop, most, [&] { return limit_ == 0 || inside_ < limit_; });
  ++inside_;
  return Place(this);
}

void TransferGate::leave() noexcept {
  {
    const std::lock_guard lock(mutex_);
    --inside_;
  }
  freed_.notify_one();
}

}  // namespace torchsnapshot
