#include "pipeline/write_pipeline.h"

#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <variant>

#include "device/cuda_copies.h"
#include "integrity/block_checksums.h"
#include "pipeline/options.h"
#include "plan/blocks.h"
#include "tensor/device_copy.h"
#include "tensor/strided_copy.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

/// Less is copied faster than it is protected.
constexpr std::uint64_t kMinLazyBytes = 2ULL << 20;

std::uint64_t total_bytes(const WritePlan& plan) {
  std::uint64_t total = 0;
  for (const WriteObject& object : plan.objects) total += object.size;
  return total;
}

/// The memory of a piece whose bytes lie there as they are to be stored, or null.
const std::byte* plain_memory(const WritePiece& piece) {
  if (const auto* bytes = std::get_if<SharedBytes>(&piece.item->source)) return bytes->span().data() + piece.begin;
  const auto& view = std::get<TensorView>(piece.item->source);
  return view.device == DeviceType::kCpu && view.is_contiguous() ? view.data + piece.begin : nullptr;
}

bool is_on_cuda(const WritePiece& piece) {
  const auto* view = std::get_if<TensorView>(&piece.item->source);
  return view != nullptr && view->device == DeviceType::kCuda;
}

/// Copies a piece that has no plain memory, and does not come from a CUDA device, to `out`.
void gather_piece(const WritePiece& piece, std::span<std::byte> out) {
  const auto& view = std::get<TensorView>(piece.item->source);
  if (view.device == DeviceType::kCpu) {
    gather(view, piece.begin, out);
  } else {
    device_copier().to_host(view, piece.begin, out);
  }
}

/// The streams of the plan's tensors on CUDA devices; none without such tensors.
std::vector<DeviceStream> cuda_streams(const WritePlan& plan) {
  std::vector<DeviceStream> streams;
  for (const WriteObject& object : plan.objects) {
    for (const WriteItem& item : object.items) {
      const auto* view = std::get_if<TensorView>(&item.source);
      if (view != nullptr && view->device == DeviceType::kCuda) streams.push_back(view->stream);
    }
  }
  return streams;
}

/// True for memory that may be looked at later: it stays while the item does.
bool may_wait(const WriteItem& item) {
  const auto* view = std::get_if<TensorView>(&item.source);
  return view != nullptr && view->owner.use_count() > 0;
}

/// Whether what a block takes from CUDA devices may be copied later.
bool may_wait_on_cuda(const WriteBlock& block) {
  return std::all_of(block.pieces.begin(), block.pieces.end(),
                     [](const WritePiece& piece) { return !is_on_cuda(piece) || may_wait(*piece.item); });
}

std::vector<WriteBlock> cut(const WriteObject& object, Staging staging, const Storage& storage) {
  if (staging == Staging::kWhereNeeded || staging == Staging::kEverything) {
    return write_blocks(object, block_sizes(storage), staging == Staging::kWhereNeeded);
  }
  return lazy_write_blocks(object, {.min_direct = kMinLazyBytes}, may_wait);
}

/// Fills `buffer` with the bytes of a block, zeros between the pieces. With `checksums` they are added to it in the
/// same pass. `from_cuda`: where the bytes from CUDA devices are already, as they lie in the block; empty: they are
/// left out.
void stage_block(const WriteBlock& block, std::span<std::byte> buffer, ChecksumBuilder* checksums,
                 std::span<const std::byte> from_cuda = {}) {
  std::uint64_t at = block.range.begin;
  const auto zero_until = [&](std::uint64_t end) {
    if (end == at) return;
    const auto gap = buffer.subspan(at - block.range.begin, end - at);
    std::memset(gap.data(), 0, gap.size());
    if (checksums != nullptr) checksums->add_zeros(at, gap.size());
    at = end;
  };
  for (const WritePiece& piece : block.pieces) {
    zero_until(piece.offset);
    const auto out = buffer.subspan(piece.offset - block.range.begin, piece.size);
    const std::byte* memory = plain_memory(piece);
    if (is_on_cuda(piece)) {
      at = piece.offset + piece.size;
      if (from_cuda.empty()) continue;
      memory = from_cuda.data() + (piece.offset - block.range.begin);
    }
    if (memory == nullptr) {
      gather_piece(piece, out);
      if (checksums != nullptr) checksums->add(piece.offset, out);
    } else if (checksums != nullptr) {
      checksums->add_copy(piece.offset, out, {memory, piece.size});
    } else {
      std::memcpy(out.data(), memory, piece.size);
    }
    at = piece.offset + piece.size;
  }
  zero_until(block.range.end);
}

/// Tasks of a group that begin when they are let go; those that come later begin at once. Thread-safe.
class HeldBack {
 public:
  HeldBack(TaskGroup& group, bool is_on) : group_(group), is_on_(is_on) {}
  void run(std::function<void()> task) {
    {
      const std::lock_guard lock(mutex_);
      if (is_on_) {
        tasks_.push_back(std::move(task));
        return;
      }
    }
    group_.run(std::move(task));
  }
  void let_go() {
    const std::lock_guard lock(mutex_);
    is_on_ = false;
    for (auto& task : tasks_) group_.run(std::move(task));
    tasks_.clear();
  }

 private:
  TaskGroup& group_;
  std::mutex mutex_;
  bool is_on_;
  std::vector<std::function<void()>> tasks_;
};

/// The budget of all takes that stage everything: several may be pending.
MemoryBudget& shared_budget(std::uint64_t limit) {
  // Never destroyed: takes may be pending when static objects go. A forked child has none of its parent's takes.
  static std::mutex mutex;
  static auto* by_process = new std::map<pid_t, MemoryBudget*>;
  const std::lock_guard lock(mutex);
  MemoryBudget*& budget = (*by_process)[getpid()];
  if (budget == nullptr) budget = new MemoryBudget(limit);
  budget->set_limit(limit);
  return *budget;
}

}  // namespace

/// An object on its way to storage; shared by the tasks of its blocks. The last one finishes it.
class WritePipeline::Object {
 public:
  Object(const WriteObject& object, Storage& storage, const IoOptions& options, Staging staging)
      : object_(object), storage_(storage), blocks_(cut(object, staging, storage)), remaining_(blocks_.size()) {
    if (options.checksums) checksums_.emplace(object.size);
  }

  [[nodiscard]] const std::vector<WriteBlock>& blocks() const noexcept { return blocks_; }

  /// Stages, if the block has to be, and writes.
  void write(const WriteBlock& block, MemoryBudget& budget, const std::stop_token& stop) {
    with_context(block, [&] {
      if (block.direct != nullptr) {
        const std::span data(block.direct, block.range.size());
        std::optional<std::uint32_t> crc;
        if (checksums_) crc = checksums_->add(block.range.begin, data);
        put(block, data, stop, crc);
        return;
      }
      const auto lease = budget.acquire(staged_bytes(), stop);
      const auto buffer = staging_pool().acquire();
      const auto data = buffer.span().first(block.range.size());
      if (const auto parts = cuda_parts(block); !parts.empty()) {
        auto copy = cuda_copies().to_host(parts, stop);
        stage_block(block, data, checksums(), copy.wait());
      } else {
        stage_block(block, data, checksums());
      }
      put(block, data, stop);
    });
  }

  /// Only stages. The checksums are made on the way: with stores past the caches that costs less than a plain copy.
  /// `from_cuda`: see stage_block.
  void stage(const WriteBlock& block, std::span<std::byte> buffer, std::span<const std::byte> from_cuda = {}) {
    with_context(block, [&] { stage_block(block, buffer.first(block.range.size()), checksums(), from_cuda); });
  }
  /// Adds what stage() has left out.
  void add_from_cuda(const WriteBlock& block, std::span<std::byte> buffer, std::span<const std::byte> chunk) {
    const auto parts = cuda_parts(block);
    if (parts.size() == block.pieces.size()) return stage(block, buffer, chunk);  // nothing was staged
    for (const CudaCopies::Part& part : parts) {
      const auto out = buffer.subspan(part.at, part.size);
      const auto data = chunk.subspan(part.at, part.size);
      if (checksums_) {
        checksums_->add_copy(block.range.begin + part.at, out, data);
      } else {
        std::memcpy(out.data(), data.data(), data.size());
      }
    }
  }
  /// `is_summed`: stage() made the checksums.
  void write_staged(const WriteBlock& block, std::span<const std::byte> buffer, bool is_summed,
                    const std::stop_token& stop) {
    with_context(block, [&] {
      const auto data = buffer.first(block.range.size());
      if (checksums_ && !is_summed) checksums_->add(block.range.begin, data);
      put(block, data, stop);
    });
  }

  /// For an object without bytes.
  void write_empty(const std::stop_token& stop) {
    try {
      writer(stop).finish();
    } catch (const Error& error) {
      throw error.with_context("writing " + object_.location);
    }
  }

  /// Adds the table of the finished object.
  void add_checksums(ChecksumTables& tables) const {
    if (checksums_) tables.emplace(object_.location, checksums_->finish());
  }

  static std::uint64_t staged_bytes() noexcept { return BlockSizes{}.staged; }

 private:
  ChecksumBuilder* checksums() noexcept { return checksums_ ? &*checksums_ : nullptr; }

  /// `crc`: of `data`, where it is known.
  void put(const WriteBlock& block, std::span<const std::byte> data, const std::stop_token& stop,
           std::optional<std::uint32_t> crc = std::nullopt) {
    if (crc) {
      writer(stop).write_summed(block.range.begin, data, *crc);
    } else {
      writer(stop).write(block.range.begin, data);
    }
    if (remaining_.fetch_sub(1) == 1) {
      writer(stop).finish();
      writer_.reset();  // closes the file
    }
  }

  ObjectWriter& writer(const std::stop_token& stop) {
    // No std::call_once: under ThreadSanitizer it waits forever after a call that threw.
    const std::lock_guard lock(writer_mutex_);
    if (!writer_) writer_ = storage_.create(object_.location, object_.size, stop);
    return *writer_;
  }

  template <typename Step>
  void with_context(const WriteBlock& block, const Step& step) const {
    try {
      step();
    } catch (const Error& error) {
      throw error.with_context(block.pieces.empty() ? "writing " + object_.location
                                                    : "writing '" + block.pieces.front().item->path + "'");
    }
  }

  const WriteObject& object_;
  Storage& storage_;
  std::vector<WriteBlock> blocks_;
  std::optional<ChecksumBuilder> checksums_;
  std::atomic<std::size_t> remaining_;
  std::mutex writer_mutex_;
  std::unique_ptr<ObjectWriter> writer_;
};

WritePipeline::WritePipeline(const WritePlan& plan, Storage& storage, const IoOptions& options, Staging staging,
                             const WriteGuard::Limits& limits)
    : options_(options),
      staging_(staging),
      limits_(limits),
      meter_(total_bytes(plan), options_.on_progress),
      cuda_streams_(cuda_streams(plan)),
      own_budget_(cuda_streams_.empty() ? budget_or_default(options) : budget_beside_ring(budget_or_default(options))),
      budget_(staging == Staging::kWhereNeeded ? own_budget_ : shared_budget(own_budget_.limit())),
      threads_(storage.limit_transfers(std::max<std::size_t>(1, options.io_concurrency))),
      writes_(threads_, options.stop) {
  objects_.reserve(plan.objects.size());
  for (const WriteObject& object : plan.objects) {
    objects_.push_back(std::make_shared<Object>(object, storage, options_, staging));
  }
}

WritePipeline::~WritePipeline() {
  if (device_) device_->close();
  if (lazy_) lazy_->close();
}

void WritePipeline::stage() {
  started_ = true;
  // The next take finds this memory warm.
  std::size_t buffers = 0;
  for (const auto& object : objects_) buffers += object->blocks().size();
  staging_pool().keep_at_least(std::min<std::size_t>(buffers, budget_.limit() / kStagingBufferBytes + 1));
  // What the program queues from now on is not what the copies wait for.
  if (!cuda_streams_.empty()) cuda_copies().order_after(cuda_streams_);
  if (staging_ != Staging::kEverything) begin_lazy_copies();
  if (staging_ == Staging::kPromised && !cuda_streams_.empty()) plan_device_copies();
  const std::stop_token stop = writes_.stop_token();
  BlockList blocks;
  BlockList from_devices;
  for (const auto& object : objects_) {
    for (const WriteBlock& block : object->blocks()) {
      if (later_.contains(&block)) continue;
      const bool is_from_device =
          !cuda_streams_.empty() && std::any_of(block.pieces.begin(), block.pieces.end(), is_on_cuda);
      (is_from_device ? from_devices : blocks).emplace_back(object, &block);
    }
  }
  // With warm memory for all of it, the writes begin behind the copies: the caller waits for these, and the cores are
  // theirs. Once there is no buffer that was used before, writes are what makes some.
  MemoryBudget::Lease whole = budget_.try_acquire((blocks.size() + from_devices.size()) * Object::staged_bytes());
  const bool has_all = whole.bytes() > 0;
  HeldBack writes(writes_, has_all);
  std::mutex mutex;  // of `whole`
  const auto lease_one = [&](bool may_wait, const std::stop_token& until) {
    if (!staging_pool().has_free()) writes.let_go();
    if (has_all) {
      const std::lock_guard lock(mutex);
      return whole.split(Object::staged_bytes());
    }
    return may_wait ? budget_.acquire(Object::staged_bytes(), until) : budget_.try_acquire(Object::staged_bytes());
  };
  std::optional<DeviceStaging> devices;
  // The copies end when a write fails: there is no sense in the rest.
  ThreadPool cores(std::max(1U, std::thread::hardware_concurrency()));
  TaskGroup copies(cores, stop);
  if (!from_devices.empty()) {
    devices.emplace(
        cuda_copies(), device_blocks(from_devices), lease_one,
        [&](std::size_t i, std::span<const std::byte> chunk, MemoryBudget::Lease lease, BufferPool::Buffer buffer) {
          const auto& [object, block] = from_devices[i];
          object->stage(*block, buffer.span(), chunk);
          writes.run(write_of(object, *block, std::move(lease), std::move(buffer), true));
        },
        copies.stop_token());
    for (std::size_t i = devices->useful_threads(); i > 0; --i) copies.run([&] { devices->work(); });
  }
  for (const auto& [object, block] : blocks) {
    copies.run([&, this, object = object, block = block] {
      MemoryBudget::Lease lease = lease_one(true, stop);
      BufferPool::Buffer buffer = staging_pool().acquire();
      object->stage(*block, buffer.span());
      writes.run(write_of(object, *block, std::move(lease), std::move(buffer), true));
    });
  }
  try {
    copies.wait(options_.poll);
    if (devices) devices->wait();
  } catch (const Error& error) {
    // When a write has failed the copies are stopped; its error comes from finish().
    if (error.code() != ErrorCode::kCancelled || options_.stop.stop_requested()) throw;
  }
  writes.let_go();
  for (const auto& object : objects_) {
    if (object->blocks().empty()) writes_.run([object, stop] { object->write_empty(stop); });
  }
  if (device_) device_->run_ahead();
  if (lazy_) lazy_->run_ahead();
}

std::vector<DeviceStaging::Block> WritePipeline::device_blocks(const BlockList& list) const {
  std::vector<DeviceStaging::Block> blocks;
  for (const auto& [object, block] : list) {
    blocks.push_back(
        {.path = block->pieces.front().item->path, .parts = cuda_parts(*block), .lease = {}, .buffer = {}});
  }
  return blocks;
}

/// Finds the blocks that may be copied from devices later. What they have beside that is copied now.
void WritePipeline::plan_device_copies() {
  BlockList list;
  for (const auto& object : objects_) {
    for (const WriteBlock& block : object->blocks()) {
      const auto parts = cuda_parts(block);
      if (!parts.empty() && may_wait_on_cuda(block)) list.emplace_back(object, &block);
    }
  }
  std::vector<DeviceStaging::Block> blocks = device_blocks(list);
  BlockList later;
  std::vector<DeviceStaging::Block> chosen;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const auto& [object, block] = list[i];
    if (blocks[i].parts.size() < block->pieces.size()) {
      MemoryBudget::Lease lease = budget_.try_acquire(Object::staged_bytes());
      if (lease.bytes() == 0) continue;  // copied at once, as a whole
      blocks[i].lease = std::move(lease);
      blocks[i].buffer.emplace(staging_pool().acquire());
      object->stage(*block, blocks[i].buffer->span());
    }
    later.push_back(list[i]);
    later_.insert(block);
    chosen.push_back(std::move(blocks[i]));
  }
  if (later.empty()) return;
  device_ = std::make_shared<DeviceStaging>(
      cuda_copies(), std::move(chosen),
      [this](bool may_wait, const std::stop_token& stop) {
        return may_wait ? budget_.acquire(Object::staged_bytes(), stop) : budget_.try_acquire(Object::staged_bytes());
      },
      [this, later](std::size_t i, std::span<const std::byte> chunk, MemoryBudget::Lease lease,
                    BufferPool::Buffer buffer) {
        const auto& [object, block] = later[i];
        object->add_from_cuda(*block, buffer.span(), chunk);
        writes_.run(write_of(object, *block, std::move(lease), std::move(buffer), true));
      },
      writes_.stop_token());
}

std::function<void()> WritePipeline::write_of(const std::shared_ptr<Object>& object, const WriteBlock& block,
                                              MemoryBudget::Lease lease, BufferPool::Buffer buffer, bool is_summed) {
  // A task has to be copyable.
  auto held = std::make_shared<std::pair<MemoryBudget::Lease, BufferPool::Buffer>>(std::move(lease), std::move(buffer));
  return [this, object, &block, is_summed, stop = writes_.stop_token(), held = std::move(held)] {
    object->write_staged(block, held->second.span(), is_summed, stop);
    meter_.add(block.range.size());
  };
}

void WritePipeline::begin_lazy_copies() {
  struct Part {
    std::shared_ptr<Object> object;
    const WriteBlock* block;
    std::size_t region;
  };
  std::vector<Part> parts;
  std::vector<TouchedBlock> touched;
  std::vector<std::span<const std::byte>> regions;
  std::vector<const WriteItem*> items;  // of the regions
  for (const auto& object : objects_) {
    for (const WriteBlock& block : object->blocks()) {
      if (block.direct == nullptr) continue;
      const WriteItem* item = block.pieces.front().item;
      if (items.empty() || items.back() != item) {
        items.push_back(item);
        regions.emplace_back(block.direct, 0);
      }
      regions.back() = {regions.back().data(), regions.back().size() + block.range.size()};
      parts.push_back({object, &block, regions.size() - 1});
      touched.push_back({item->path, block.range.size()});
    }
  }
  if (parts.empty()) return;
  std::string why_not;
  const bool protects = staging_ == Staging::kProtected;
  lazy_ = LazyCopies::make(protects ? LazyPromise::kProtected : LazyPromise::kByCaller, limits_, budget_,
                           writes_.stop_token(), why_not);
  if (!lazy_) {
    if (options_.on_notice) options_.on_notice("lazy staging is not possible, the state is copied at once: " + why_not);
    return;
  }
  std::vector<Part> order;
  std::vector<LazyBlock> blocks;
  for (const std::size_t i : touch_order(touched)) {
    order.push_back(parts[i]);
    blocks.push_back({.memory = {parts[i].block->direct, parts[i].block->range.size()}, .region = parts[i].region});
  }
  const std::vector<bool> is_held =
      lazy_->start(regions, blocks, [this, order](std::size_t i, MemoryBudget::Lease lease, BufferPool::Buffer buffer) {
        writes_.run(write_of(order[i].object, *order[i].block, std::move(lease), std::move(buffer), false));
      });
  for (const Part& part : parts) {
    if (is_held[part.region]) later_.insert(part.block);
  }
  const auto refused = std::find(is_held.begin(), is_held.end(), false);
  if (refused == is_held.end() || !options_.on_notice || !protects) return;
  options_.on_notice("lazy staging: " + std::to_string(std::count(is_held.begin(), is_held.end(), false)) + " of " +
                     std::to_string(is_held.size()) +
                     " large tensors can't be write-protected and are copied at once (memory that is shared, of a file "
                     "or of a driver, or views of one storage); the first is '" +
                     items[static_cast<std::size_t>(refused - is_held.begin())]->path + "'");
}

void WritePipeline::wait_copied() {
  if (device_) device_->wait();
  if (lazy_) lazy_->wait();
}

ChecksumTables WritePipeline::finish() {
  start();
  wait_copied();
  writes_.wait(options_.poll);
  if (device_) device_->close();
  if (lazy_) lazy_->close();
  meter_.finish();
  ChecksumTables tables;
  for (const auto& object : objects_) object->add_checksums(tables);
  return tables;
}

void WritePipeline::start() {
  if (std::exchange(started_, true)) return;
  if (!cuda_streams_.empty()) cuda_copies().order_after(cuda_streams_);
  const std::stop_token stop = writes_.stop_token();
  for (const auto& object : objects_) {
    if (object->blocks().empty()) writes_.run([object, stop] { object->write_empty(stop); });
    for (const WriteBlock& block : object->blocks()) {
      writes_.run([this, object, &block, stop] {
        object->write(block, budget_, stop);
        meter_.add(block.range.size());
      });
    }
  }
}

}  // namespace torchsnapshot
