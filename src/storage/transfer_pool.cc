#include "storage/transfer_pool.h"

#include <unistd.h>

#include <new>
#include <utility>

#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

// Partial pages at the ends of a read: not worth a large buffer.
constexpr std::size_t kSmallBytes = 64 << 10;

}  // namespace

std::unique_ptr<Ring> TransferPool::take_ring() {
  {
    const std::lock_guard lock(mutex_);
    while (!rings_.empty()) {
      Kept kept = std::move(rings_.back());
      rings_.pop_back();
      if (kept.owner == ::getpid())
        return std::move(kept.ring);  // else the parent's, which its destructor leaves alone
    }
  }
  return sys_->make_ring(kRingDepth);
}

void TransferPool::give_back(std::unique_ptr<Ring> ring) noexcept {
  try {
    const std::lock_guard lock(mutex_);
    rings_.push_back({std::move(ring), ::getpid()});
  } catch (const std::bad_alloc&) {  // it is closed instead
    return;
  }
}

std::unique_ptr<TransferPool::Bounce> TransferPool::take_bounce(std::size_t size, bool may_wait) {
  if (size <= kSmallBytes) {
    std::unique_ptr<Bounce> small(new Bounce(nullptr));
    small->small_.reset(std::aligned_alloc(kSmallBytes, kSmallBytes));
    if (!small->small_)
      throw Error(ErrorCode::kNoSpace, "no memory for a buffer of " + std::to_string(size) + " bytes");
    return small;
  }
  if (may_wait) {
    permits_.acquire();
  } else if (!permits_.try_acquire()) {
    return nullptr;
  }
  std::unique_ptr<TransferPool, Bounce::Return> permit(this);
  std::unique_ptr<Bounce> large(new Bounce(std::move(permit)));
  large->large_.emplace(buffers_.acquire());
  return large;
}

}  // namespace torchsnapshot
