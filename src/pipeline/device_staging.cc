#include "pipeline/device_staging.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "exec/pending_list.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::size_t kInFlight = 2;  ///< of one thread
constexpr std::size_t kMaxThreads = 4;

/// All that are under way in this process. A forked child has none: CUDA does not work there.
PendingList<DeviceStaging>& pending() {
  static auto* const all = new PendingList<DeviceStaging>;
  return *all;
}

}  // namespace

std::vector<CudaCopies::Part> cuda_parts(const WriteBlock& block) {
  std::vector<CudaCopies::Part> parts;
  for (const WritePiece& piece : block.pieces) {
    const auto* view = std::get_if<TensorView>(&piece.item->source);
    if (view == nullptr || view->device != DeviceType::kCuda || piece.size == 0) continue;
    parts.push_back({.view = view, .begin = piece.begin, .size = piece.size, .at = piece.offset - block.range.begin});
  }
  return parts;
}

DeviceStaging::DeviceStaging(CudaCopies& copies, std::vector<Block> blocks, LeaseFn lease, Deliver deliver,
                             std::stop_token stop)
    : copies_(copies),
      blocks_(std::move(blocks)),
      lease_(std::move(lease)),
      deliver_(std::move(deliver)),
      total_(blocks_.size()),
      forward_(std::move(stop), [this] {
        end_.request_stop();
        const std::lock_guard lock(mutex_);
        changed_.notify_all();
      }) {}

DeviceStaging::~DeviceStaging() {
  close();
}

std::size_t DeviceStaging::useful_threads() const noexcept {
  const std::size_t cores = std::max(1U, std::thread::hardware_concurrency());
  return std::min({cores, kMaxThreads, total_});
}

void DeviceStaging::work() noexcept {
  {
    const std::lock_guard lock(mutex_);
    ++working_;
  }
  std::exception_ptr error;
  try {
    copy_blocks();
  } catch (...) {
    error = std::current_exception();
  }
  // What comes of a stop is no reason of its own.
  const bool is_first = error && !end_.stop_requested();
  if (error) end_.request_stop();
  const std::lock_guard lock(mutex_);
  if (is_first && !error_) error_ = error;
  --working_;
  changed_.notify_all();
}

void DeviceStaging::copy_blocks() {
  std::deque<Flying> flying;
  while (const auto index = claim()) {
    take_off(*index, flying);
    if (flying.size() == kInFlight) land(flying);
  }
  while (!flying.empty()) land(flying);
}

std::optional<std::size_t> DeviceStaging::claim() {
  const std::lock_guard lock(mutex_);
  if (next_ == total_ || end_.stop_requested()) return std::nullopt;
  return next_++;
}

void DeviceStaging::take_off(std::size_t index, std::deque<Flying>& flying) {
  Block& block = blocks_[index];
  while (!get_buffer(block, flying.empty())) land(flying);
  try {
    for (bool is_queued = false; !is_queued;) {
      if (flying.empty()) {
        flying.push_back({index, copies_.to_host(block.parts, end_.get_token())});
        is_queued = true;
      } else if (auto copy = copies_.try_to_host(block.parts)) {
        flying.push_back({index, *std::move(copy)});
        is_queued = true;
      } else {
        land(flying);
      }
    }
  } catch (const Error& error) {
    throw error.with_context("copying '" + block.path + "'");
  }
  const std::lock_guard lock(mutex_);
  if (++queued_ == total_) changed_.notify_all();
}

bool DeviceStaging::get_buffer(Block& block, bool may_wait) {
  if (block.buffer) return true;
  MemoryBudget::Lease lease = lease_(may_wait, end_.get_token());
  if (lease.bytes() == 0) return false;
  block.lease = std::move(lease);
  block.buffer.emplace(staging_pool().acquire());
  return true;
}

void DeviceStaging::land(std::deque<Flying>& flying) {
  Flying first = std::move(flying.front());
  flying.pop_front();
  Block& block = blocks_[first.block];
  try {
    const auto chunk = first.copy.wait();
    // Nobody waits for what was given up; what it would be delivered to may be going.
    if (end_.stop_requested()) throw Error(ErrorCode::kCancelled, "copying from a device was cancelled");
    deliver_(first.block, chunk, std::move(block.lease), *std::move(block.buffer));
  } catch (const Error& error) {
    throw error.with_context("copying '" + block.path + "'");
  }
  const std::lock_guard lock(mutex_);
  if (++delivered_ == total_) changed_.notify_all();
}

void DeviceStaging::run_ahead() {
  pending().add(weak_from_this());
  for (std::size_t i = useful_threads(); i > 0; --i) threads_.emplace_back([this] { work(); });
}

void DeviceStaging::wait_queued() {
  std::unique_lock lock(mutex_);
  // After a stop: when no thread is between claiming and queueing, as that copy may still begin.
  changed_.wait(lock, [this] { return queued_ == total_ || (end_.stop_requested() && working_ == 0); });
}

void DeviceStaging::wait() {
  wait_quietly();
  const std::lock_guard lock(mutex_);
  if (error_) std::rethrow_exception(error_);
}

void DeviceStaging::wait_quietly() noexcept {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return (delivered_ == total_ || end_.stop_requested()) && working_ == 0; });
}

void DeviceStaging::close() noexcept {
  end_.request_stop();
  {
    const std::lock_guard lock(mutex_);
    changed_.notify_all();
  }
  threads_.clear();
  blocks_.clear();  // what was never delivered gives its memory back while the budget is there
}

void finish_device_staging() {
  for (const auto& staging : pending().all()) staging->wait_quietly();
}

}  // namespace torchsnapshot
