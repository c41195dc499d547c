#include "device/cuda_copies.h"

#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <set>
#include <utility>

#include "device/copy_plan.h"
#include "exec/fork_lock.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

cuda::DevicePointer address_of(const TensorView& view, const CopyRect& rect) noexcept {
  return reinterpret_cast<std::uintptr_t>(view.data) + static_cast<std::uint64_t>(rect.device);
}

void queue_to_host(const CudaDevice& device, const CudaCopies::Part& part, std::byte* out) {
  for (const CopyRect& rect : plan_copy(*part.view, part.begin, part.size)) {
    if (rect.rows == 1) {
      device.copy_to_host(out + rect.host, address_of(*part.view, rect), rect.width);
      continue;
    }
    cuda::Copy2D copy{};
    copy.source_type = cuda::kMemoryDevice;
    copy.source_device = address_of(*part.view, rect);
    copy.source_pitch = rect.pitch;
    copy.target_type = cuda::kMemoryHost;
    copy.target_host = out + rect.host;
    copy.target_pitch = rect.width;
    copy.width_bytes = rect.width;
    copy.height = rect.rows;
    device.copy_2d(copy, device.to_host());
  }
}

void queue_to_device(const CudaDevice& device, std::span<const std::byte> in, std::uint64_t begin,
                     const TensorView& view) {
  for (const CopyRect& rect : plan_copy(view, begin, in.size())) {
    if (rect.rows == 1) {
      device.copy_to_device(address_of(view, rect), in.data() + rect.host, rect.width);
      continue;
    }
    cuda::Copy2D copy{};
    copy.source_type = cuda::kMemoryHost;
    copy.source_host = in.data() + rect.host;
    copy.source_pitch = rect.width;
    copy.target_type = cuda::kMemoryDevice;
    copy.target_device = address_of(view, rect);
    copy.target_pitch = rect.pitch;
    copy.width_bytes = rect.width;
    copy.height = rect.rows;
    device.copy_2d(copy, device.to_device());
  }
}

}  // namespace

CudaCopies::ToHost::~ToHost() {
  if (!events_.empty()) give_up();
}

std::span<const std::byte> CudaCopies::ToHost::wait() {
  for (const CudaEvent& event : events_) event.wait();
  events_.clear();
  return chunk_.span();
}

void CudaCopies::ToHost::give_up() noexcept {
  if (!settle(events_)) ring_.lose(std::move(chunk_));
}

CudaCopies::~CudaCopies() {
  bool is_idle = true;
  for (const CudaDevice* device : devices()) is_idle = device->settle() && is_idle;
  if (is_idle) ring_.find_lost();
}

CudaDevice& CudaCopies::device(int index) {
  const std::lock_guard lock(mutex_);
  auto& device = devices_[index];
  if (!device) device = std::make_unique<CudaDevice>(driver_, index);
  return *device;
}

std::vector<CudaDevice*> CudaCopies::devices() {
  const std::lock_guard lock(mutex_);
  std::vector<CudaDevice*> all;
  for (const auto& [index, device] : devices_) {
    if (device) all.push_back(device.get());
  }
  return all;
}

void CudaCopies::order_after(std::span<const DeviceStream> streams) {
  std::set<std::pair<int, void*>> seen;
  for (const DeviceStream& stream : streams) {
    if (!seen.emplace(stream.device, stream.handle).second) continue;
    CudaDevice& own = device(stream.device);
    const CudaEvent event = own.record(stream.handle);
    own.let_wait(own.to_host(), event);
    own.let_wait(own.to_device(), event);
  }
}

void CudaCopies::order_before(std::span<const DeviceStream> streams) {
  if (streams.empty()) return;
  for (CudaDevice* from : devices()) {
    const CudaEvent event = from->record(from->to_host());
    for (const DeviceStream& stream : streams) device(stream.device).let_wait(stream.handle, event);
  }
}

CudaCopies::ToHost CudaCopies::to_host(std::span<const Part> parts, const std::stop_token& stop) {
  return queue(ring_.acquire(device(parts.front().view->stream.device), stop), parts);
}

std::optional<CudaCopies::ToHost> CudaCopies::try_to_host(std::span<const Part> parts) {
  auto chunk = ring_.try_acquire(device(parts.front().view->stream.device));
  if (!chunk) return std::nullopt;
  return queue(*std::move(chunk), parts);
}

CudaCopies::ToHost CudaCopies::queue(PinnedRing::Chunk chunk, std::span<const Part> parts) {
  ToHost copies(ring_, std::move(chunk));
  std::vector<CudaDevice*> used;
  try {
    for (const Part& part : parts) {
      if (part.size == 0) continue;
      CudaDevice& from = device(part.view->stream.device);
      if (std::find(used.begin(), used.end(), &from) == used.end()) used.push_back(&from);
      queue_to_host(from, part, copies.chunk_.span().data() + part.at);
    }
    for (CudaDevice* from : used) copies.events_.push_back(from->record(from->to_host()));
  } catch (...) {
    bool is_over = true;
    for (const CudaDevice* from : used) is_over = from->settle() && is_over;
    copies.events_.clear();
    if (!is_over) ring_.lose(std::move(copies.chunk_));
    throw;
  }
  return copies;
}

void CudaCopies::to_device(std::span<const std::byte> in, std::uint64_t begin, const TensorView& view,
                           const std::stop_token& stop) {
  if (in.empty()) return;
  CudaDevice& to = device(view.stream.device);
  PinnedRing::Chunk chunk = ring_.acquire(to, stop);
  const auto pinned = chunk.span().first(in.size());
  std::memcpy(pinned.data(), in.data(), in.size());
  std::vector<CudaEvent> events;
  try {
    queue_to_device(to, pinned, begin, view);
    events.push_back(to.record(to.to_device()));
  } catch (...) {
    if (!to.settle()) ring_.lose(std::move(chunk));
    throw;
  }
  ring_.give_back_after(std::move(chunk), std::move(events));
}

void CudaCopies::wait_to_device(std::span<const DeviceStream> streams) {
  std::set<int> seen;
  std::exception_ptr error;
  for (const DeviceStream& stream : streams) {
    if (!seen.insert(stream.device).second) continue;
    CudaDevice& to = device(stream.device);
    try {
      to.record(to.to_device()).wait();
    } catch (...) {
      to.settle();
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

namespace {

struct Process {
  std::mutex mutex;
  pid_t owner = 0;
  CudaCopies* copies = nullptr;

  static Process& get() {
    static Process* process = [] {
      auto* made = new Process;
      lock_over_fork(made->mutex);
      return made;
    }();
    return *process;
  }
};

}  // namespace

CudaCopies& cuda_copies() {
  Process& process = Process::get();
  const std::lock_guard lock(process.mutex);
  if (process.copies == nullptr) {
    process.copies = new CudaCopies(load_cuda_driver());
    process.owner = getpid();
  }
  if (process.owner != getpid()) {
    throw Error(ErrorCode::kUnsupported,
                "CUDA does not work in a forked child of a process that has used it: start processes by spawn or exec");
  }
  return *process.copies;
}

void close_cuda_copies() {
  Process& process = Process::get();
  const std::lock_guard lock(process.mutex);
  delete std::exchange(process.copies, nullptr);
}

void release_pinned_memory() {
  Process& process = Process::get();
  const std::lock_guard lock(process.mutex);
  if (process.copies != nullptr && process.owner == getpid()) process.copies->release_memory();
}

}  // namespace torchsnapshot
