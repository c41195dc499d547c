#include "exec/memory_budget.h"

#include <algorithm>
#include <utility>

#include "exec/available_memory.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {

MemoryBudget::Lease::Lease(Lease&& other) noexcept
    : budget_(std::exchange(other.budget_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

MemoryBudget::Lease& MemoryBudget::Lease::operator=(Lease&& other) noexcept {
  Lease taken(std::move(other));
  std::swap(budget_, taken.budget_);
  std::swap(bytes_, taken.bytes_);
  return *this;
}

MemoryBudget::Lease::~Lease() {
  if (budget_ != nullptr) budget_->release(bytes_);
}

bool MemoryBudget::fits(std::uint64_t bytes) const noexcept {
  return bytes == 0 || in_use_ == 0 || (in_use_ <= limit_ && bytes <= limit_ - in_use_);
}

MemoryBudget::Lease MemoryBudget::acquire(std::uint64_t bytes, const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  const std::uint64_t ticket = next_ticket_++;
  queue_.push_back(ticket);
  const bool granted =
      !stop.stop_requested() && changed_.wait(lock, stop, [&] { return queue_.front() == ticket && fits(bytes); });
  std::erase(queue_, ticket);
  // Either way somebody else may be first now.
  changed_.notify_all();
  if (!granted) throw Error(ErrorCode::kCancelled, "cancelled while waiting for memory of the budget");
  return grant(bytes);
}

MemoryBudget::Lease MemoryBudget::try_acquire(std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (!queue_.empty() || in_use_ > limit_ || bytes > limit_ - in_use_) return {};
  return grant(bytes);
}

MemoryBudget::Lease MemoryBudget::acquire_within(std::uint64_t bytes, std::chrono::milliseconds patience,
                                                 const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  const std::uint64_t ticket = next_ticket_++;
  queue_.push_front(ticket);
  if (in_use_ <= limit_) {
    changed_.wait_for(lock, stop, patience, [&] { return queue_.front() == ticket && fits(bytes); });
  }
  std::erase(queue_, ticket);
  changed_.notify_all();
  if (stop.stop_requested()) throw Error(ErrorCode::kCancelled, "cancelled while waiting for memory of the budget");
  return grant(bytes);
}

MemoryBudget::Lease MemoryBudget::grant(std::uint64_t bytes) noexcept {
  in_use_ += bytes;
  peak_ = std::max(peak_, in_use_);
  return {this, bytes};
}

std::uint64_t MemoryBudget::limit() const {
  const std::lock_guard lock(mutex_);
  return limit_;
}

void MemoryBudget::set_limit(std::uint64_t limit) {
  const std::lock_guard lock(mutex_);
  limit_ = limit;
  changed_.notify_all();
}

std::uint64_t MemoryBudget::in_use() const {
  const std::lock_guard lock(mutex_);
  return in_use_;
}

std::uint64_t MemoryBudget::peak() const {
  const std::lock_guard lock(mutex_);
  return peak_;
}

std::size_t MemoryBudget::waiting() const {
  const std::lock_guard lock(mutex_);
  return queue_.size();
}

void MemoryBudget::release(std::uint64_t bytes) noexcept {
  // Notified under the lock: whoever sees the bytes back may destroy the budget next.
  const std::lock_guard lock(mutex_);
  in_use_ -= bytes;
  changed_.notify_all();
}

std::uint64_t default_memory_budget(std::uint32_t local_ranks) {
  return memory_budget_of(available_memory(read_small_file), local_ranks);
}

}  // namespace torchsnapshot
