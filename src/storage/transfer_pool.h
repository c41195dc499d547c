// What transfers of direct I/O work with, kept for the next one.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <semaphore>
#include <utility>
#include <vector>

#include "exec/buffer_pool.h"
#include "storage/posix.h"
#include "storage/ring.h"

namespace torchsnapshot {

/// Rings and aligned bounce buffers. Thread-safe. Outlives what it lends.
class TransferPool {
 public:
  explicit TransferPool(std::shared_ptr<Sys> sys) noexcept : sys_(std::move(sys)) {}

  /// Most requests in one ring.
  static constexpr unsigned kRingDepth = 8;
  /// A large bounce buffer; a disk is slow with smaller transfers (docs/performance.md).
  static constexpr std::size_t kBounceBytes = 4 << 20;
  /// Large ones that are out at once: they are memory beyond anybody's budget.
  static constexpr std::ptrdiff_t kMostBounces = 8;

  /// A ring for the calling thread; null and errno when there is none to be had. After a fork the child gets new ones.
  std::unique_ptr<Ring> take_ring();
  /// Takes back a ring that is idle.
  void give_back(std::unique_ptr<Ring> ring) noexcept;

  /// A buffer on loan, aligned for every device.
  class Bounce {
   public:
    [[nodiscard]] std::byte* data() const noexcept {
      return large_ ? large_->span().data() : static_cast<std::byte*>(small_.get());
    }
    [[nodiscard]] bool is_large() const noexcept { return large_.has_value(); }

   private:
    friend class TransferPool;
    struct Free {
      void operator()(void* memory) const noexcept { std::free(memory); }
    };
    struct Return {
      void operator()(TransferPool* pool) const noexcept { pool->permits_.release(); }
    };
    explicit Bounce(std::unique_ptr<TransferPool, Return> permit) noexcept : permit_(std::move(permit)) {}
    std::unique_ptr<TransferPool, Return> permit_;  ///< null in a small one
    std::optional<BufferPool::Buffer> large_;
    std::unique_ptr<void, Free> small_;
  };
  /// A buffer of at least `size` bytes, at most kBounceBytes. When all large ones are out it waits for one, or, without
  /// `may_wait`, returns nothing. A thread that holds a large one must not wait. Throws Error(kNoSpace) without memory.
  std::unique_ptr<Bounce> take_bounce(std::size_t size, bool may_wait);

 private:
  struct Kept {
    std::unique_ptr<Ring> ring;
    pid_t owner;
  };

  std::shared_ptr<Sys> sys_;
  std::mutex mutex_;
  std::vector<Kept> rings_;  // guarded by mutex_
  std::counting_semaphore<kMostBounces> permits_{kMostBounces};
  BufferPool buffers_{kBounceBytes, kMostBounces};
};

}  // namespace torchsnapshot
