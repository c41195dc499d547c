// Blocks whose bytes lie on CUDA devices, on their way into staging buffers.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "device/cuda_copies.h"
#include "exec/buffer_pool.h"
#include "exec/memory_budget.h"
#include "plan/blocks.h"

namespace torchsnapshot {

/// What a block takes from CUDA devices; nothing for a block without.
std::vector<CudaCopies::Part> cuda_parts(const WriteBlock& block);

/// Copies blocks one after the other, by several threads that each have two in flight: while one is on its way through
/// the pinned ring, the other goes from there into its buffer. A thread that has a copy in flight never waits for
/// memory: it ends that copy first, so that whoever holds memory goes on.
/// Thread-safe.
class DeviceStaging : public std::enable_shared_from_this<DeviceStaging> {
 public:
  struct Block {
    std::string path;                     ///< of an entry in it, for errors
    std::vector<CudaCopies::Part> parts;  ///< `at`: in the block
    MemoryBudget::Lease lease;            ///< empty: there is no buffer yet
    std::optional<BufferPool::Buffer> buffer;
  };
  /// Memory for a buffer. `may_wait` false: or an empty lease.
  using LeaseFn = std::function<MemoryBudget::Lease(bool may_wait, const std::stop_token& stop)>;
  /// Called with each block when its bytes are in `chunk`, which is there until it returns.
  using Deliver = std::function<void(std::size_t block, std::span<const std::byte> chunk, MemoryBudget::Lease lease,
                                     BufferPool::Buffer buffer)>;

  /// `stop`: nobody needs the copies any more.
  DeviceStaging(CudaCopies& copies, std::vector<Block> blocks, LeaseFn lease, Deliver deliver, std::stop_token stop);
  ~DeviceStaging();
  DeviceStaging(const DeviceStaging&) = delete;
  DeviceStaging& operator=(const DeviceStaging&) = delete;

  /// One thread's work, until nothing is left or a copy has failed.
  void work() noexcept;
  /// Starts threads that work. From now on finish_device_staging() finds it, if a shared_ptr has it.
  void run_ahead();
  /// Waits until every copy is queued on our streams, or never will be; errors come from wait().
  void wait_queued();
  /// Waits until every block is delivered. Throws what a copy failed with.
  void wait();
  /// As wait, without the error.
  void wait_quietly() noexcept;
  /// Ends it: what is not queued never will be, deliver is not called any more, and no copy is under way.
  void close() noexcept;

  /// Threads that are enough to keep a device busy.
  [[nodiscard]] std::size_t useful_threads() const noexcept;

 private:
  struct Flying {
    std::size_t block;
    CudaCopies::ToHost copy;
  };

  /// The next block that nobody has; nothing when there is none, or it is over.
  std::optional<std::size_t> claim();
  bool get_buffer(Block& block, bool may_wait);
  void copy_blocks();
  void take_off(std::size_t index, std::deque<Flying>& flying);
  void land(std::deque<Flying>& flying);

  CudaCopies& copies_;
  std::vector<Block> blocks_;
  LeaseFn lease_;
  Deliver deliver_;
  const std::size_t total_;
  std::stop_source end_;  ///< by the caller's token, close() or an error
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t next_ = 0;
  std::size_t queued_ = 0;
  std::size_t delivered_ = 0;
  std::size_t working_ = 0;
  std::exception_ptr error_;
  std::stop_callback<std::function<void()>> forward_;
  std::vector<std::jthread> threads_;  ///< of the owner
};

/// Ends what pending takes of this process still have to copy from devices: before a restore writes there.
void finish_device_staging();

}  // namespace torchsnapshot
