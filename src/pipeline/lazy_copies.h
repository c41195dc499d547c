// Memory that is copied later: in the background, but before anybody changes it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "exec/buffer_pool.h"
#include "exec/memory_budget.h"
#include "exec/write_guard.h"

namespace torchsnapshot {

/// A run of memory; at most kStagingBufferBytes.
struct LazyBlock {
  std::span<const std::byte> memory;
  std::size_t region = 0;  ///< the region it is a part of
};

/// What keeps the memory from being changed before it is copied.
enum class LazyPromise : std::uint8_t {
  kProtected,  ///< write protection: a thread that writes waits until the block is copied
  kByCaller,   ///< the caller, who calls copy_all() first
};

/// Copies of blocks, each made once: by a thread of this that goes through them in the order given, or sooner, when
/// somebody is about to write to one. A thread that writes waits for the copy of one block, and if there is no memory
/// in the budget for it, one second at most: it may hold a lock (Python's, for one) that those who would free memory
/// wait for, so that waiting on would be a deadlock. Then the copy exceeds the budget. For the same reason blocks are
/// always copied, and not written to storage from where they lie: nobody's write waits for the storage.
/// Thread-safe.
class LazyCopies {
 public:
  /// Called with the copy of a block (its index), soon after it was made, by any thread. Must not throw.
  using Deliver = std::function<void(std::size_t block, MemoryBudget::Lease lease, BufferPool::Buffer copy)>;

  /// Null, and `why_not` says why, where memory can't be protected. The budget outlives it. `stop`: nobody needs the
  /// copies any more.
  static std::shared_ptr<LazyCopies> make(LazyPromise promise, const WriteGuard::Limits& limits, MemoryBudget& budget,
                                          std::stop_token stop, std::string& why_not);
  ~LazyCopies();
  LazyCopies(const LazyCopies&) = delete;
  LazyCopies& operator=(const LazyCopies&) = delete;

  /// Once. The memory of `regions` is kept as it is from now on, until it is copied. Says for each region whether that
  /// could be; the blocks of the others are the caller's: of regions that overlap, all but the first, and memory that
  /// can't be protected. Regions are whole pages. Blocks come in the order in which they will be needed, lie in their
  /// regions, and don't overlap within one.
  std::vector<bool> start(const std::vector<std::span<const std::byte>>& regions, const std::vector<LazyBlock>& blocks,
                          Deliver deliver);
  /// Starts the thread that copies one block after the other. Once, after start().
  void run_ahead();
  /// Copies everything that is left, on all cores. The memory may change when it returns.
  void copy_all();
  /// Copies what is left of `memory`.
  void copy_now(std::span<const std::byte> memory);
  /// As copy_now, and leaves `memory` (whole pages) to others.
  void let_go(std::span<const std::byte> memory);
  /// Waits until every block is copied and delivered, or `stop` was requested. Throws what a copy failed with.
  void wait();
  /// Ends it: what is not copied never will be, and deliver is not called any more. wait() throws or returns.
  void close() noexcept;

 private:
  class User;
  enum class State : std::uint8_t { kPlanned, kHeld, kCopying, kOver };
  struct Block {
    std::span<const std::byte> memory;
    std::size_t index = 0;  ///< among those that start() was given
    State state = State::kPlanned;
  };

  LazyCopies(MemoryBudget& budget, std::stop_token stop)
      : budget_(budget), stop_(std::move(stop)), forward_(stop_, [this] { end_.request_stop(); }) {}

  void plan(const std::vector<LazyBlock>& blocks, const std::vector<bool>& is_chosen);
  void end_planning(std::span<const std::byte> region, bool is_held);
  void try_copy_rest() noexcept;
  void copy_rest();
  bool has_rest() const;
  bool claim(std::size_t block);
  bool claim_next(std::size_t& block);
  void copy(std::size_t block, MemoryBudget::Lease lease, BufferPool::Buffer buffer) noexcept;
  void copy_urgently(std::size_t block) noexcept;
  void on_write(const std::byte* page) noexcept;
  void on_lost(std::span<const std::byte> range) noexcept;
  void release(std::span<const std::byte> memory) noexcept;
  void fail(std::exception_ptr error) noexcept;
  void fail_locked(std::exception_ptr error) noexcept;
  [[nodiscard]] std::vector<std::size_t> blocks_in(std::span<const std::byte> memory) const;

  MemoryBudget& budget_;
  const std::stop_token stop_;
  std::stop_source end_;  ///< by stop_ or close()
  std::stop_callback<std::function<void()>> forward_;
  Deliver deliver_;
  mutable std::mutex mutex_;
  mutable std::condition_variable_any changed_;
  bool is_closed_ = false;
  std::vector<Block> blocks_;            ///< in the order of copying; start() makes them all
  std::vector<std::size_t> by_address_;  ///< indices of blocks_
  std::size_t next_ = 0;                 ///< blocks before it are not held any more
  std::size_t held_ = 0;
  std::size_t copying_ = 0;
  std::size_t users_ = 0;  ///< threads that may be in budget_
  std::exception_ptr error_;
  std::unique_ptr<WriteGuard> guard_;
  std::vector<std::jthread> threads_;  ///< of the owner
};

/// Copies what pending lazy copies of this process still need of `memory`: before a system call that would not be held
/// up, and before the memory is protected again.
void finish_lazy_copies(std::span<const std::byte> memory);

/// The order in which a training step changes what blocks hold, as far as that can be guessed: each key of the app
/// state (the paths' first component) is gone through from its begin to its end, all at the same pace. An optimizer
/// goes through its parameters in order and changes each together with its state. Gives the indices of the blocks.
struct TouchedBlock {
  std::string_view path;
  std::uint64_t bytes = 0;
};
std::vector<std::size_t> touch_order(const std::vector<TouchedBlock>& blocks);

}  // namespace torchsnapshot
