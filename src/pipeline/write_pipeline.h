// From the plan of a take to its objects on storage: stage → checksum → write.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_set>
#include <vector>

#include "exec/buffer_pool.h"
#include "exec/memory_budget.h"
#include "exec/task_group.h"
#include "exec/write_guard.h"
#include "integrity/checksum_sidecar.h"
#include "pipeline/device_staging.h"
#include "pipeline/lazy_copies.h"
#include "pipeline/progress.h"
#include "plan/blocks.h"
#include "plan/write_plan.h"
#include "torchsnapshot/io_options.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// What passes through a buffer before it is written.
enum class Staging : std::uint8_t {
  kWhereNeeded,  ///< only what can't be written from where it lies; the state's memory is read until finish() returns
  kEverything,   ///< all of it, by stage()
  kProtected,    ///< all of it; large tensors later, before somebody writes to them (LazyPromise::kProtected)
  kPromised,     ///< all of it; large tensors, and any on CUDA devices, later (LazyPromise::kByCaller)
};

/// Writes every object of a plan. On an error the objects may be there in part. The plan and the storage outlive it.
/// One owner thread at a time.
class WritePipeline {
 public:
  /// Starts threads, but no work. The options' observers live as long as this.
  /// `limits`: of Staging::kProtected.
  WritePipeline(const WritePlan& plan, Storage& storage, const IoOptions& options, Staging staging,
                const WriteGuard::Limits& limits = {});
  ~WritePipeline();  ///< stops and waits; an error that nobody asked for is dropped
  WritePipeline(const WritePipeline&) = delete;
  WritePipeline& operator=(const WritePipeline&) = delete;

  /// Copies the state into buffers, on all cores, as the memory budget allows; what does not fit waits for writes to
  /// end. When it returns the memory of the plan's items is not looked at any more, but for that of lazy copies: of
  /// tensors of some MB, contiguous on the CPU, and with kPromised of any on a CUDA device, whose views own their
  /// memory (an `owner` with a reference count). For all but Staging::kWhereNeeded, before finish(). By the thread
  /// whose streams the views on CUDA devices name.
  void stage();
  /// With Staging::kWhereNeeded: writes go on from now on. finish() does it if it has not been done.
  void start();
  /// Another write, by the threads of these: so many go on at once, no more. finish() throws its error.
  void run(std::function<void()> write) { writes_.run(std::move(write)); }
  /// What stage() has left for later; null when there is nothing. It may be used when this is gone.
  [[nodiscard]] std::shared_ptr<LazyCopies> lazy_copies() const noexcept { return lazy_; }
  /// The same for what is copied from CUDA devices.
  [[nodiscard]] std::shared_ptr<DeviceStaging> device_staging() const noexcept { return device_; }
  /// Waits until nothing is left for later. Throws when a copy failed.
  void wait_copied();
  /// Waits until every object is written and durable. Returns their checksums; none without IoOptions::checksums.
  ChecksumTables finish();
  /// IoOptions::poll is not called from now on.
  void stop_polling() { options_.poll = nullptr; }

 private:
  class Object;
  using BlockList = std::vector<std::pair<std::shared_ptr<Object>, const WriteBlock*>>;

  [[nodiscard]] std::vector<DeviceStaging::Block> device_blocks(const BlockList& list) const;
  void plan_device_copies();
  void begin_lazy_copies();
  /// The task that writes a block that was copied; `is_summed`: by Object::stage.
  std::function<void()> write_of(const std::shared_ptr<Object>& object, const WriteBlock& block,
                                 MemoryBudget::Lease lease, BufferPool::Buffer buffer, bool is_summed);

  IoOptions options_;
  const Staging staging_;
  const WriteGuard::Limits limits_;
  ProgressMeter meter_;
  const std::vector<DeviceStream> cuda_streams_;  ///< of the plan's tensors
  MemoryBudget own_budget_;
  MemoryBudget& budget_;  ///< own_budget_, or the one that pending takes share
  std::vector<std::shared_ptr<Object>> objects_;
  ThreadPool threads_;
  TaskGroup writes_;
  bool started_ = false;
  std::unordered_set<const WriteBlock*> later_;  ///< what stage() does not copy
  std::shared_ptr<DeviceStaging> device_;
  std::shared_ptr<LazyCopies> lazy_;  ///< the last two use the others
};

}  // namespace torchsnapshot
