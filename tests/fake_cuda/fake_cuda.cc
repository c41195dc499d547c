#include <fake_cuda.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "device/cuda_abi.h"

namespace fake_cuda {
namespace {

namespace cuda = torchsnapshot::cuda;

constexpr cuda::Result kInvalidValue = 1;
constexpr cuda::Result kInvalidContext = 201;
constexpr cuda::Result kInvalidHandle = 400;
constexpr cuda::Result kIllegalAddress = 700;
constexpr int kDevices = 2;
constexpr std::size_t kPage = 4096;

/// Of each stream (by number), how much of what was queued on it is over before.
using Clock = std::map<int, std::uint64_t>;

void join(Clock& clock, const Clock& other) {
  for (const auto& [stream, count] : other) clock[stream] = std::max(clock[stream], count);
}

struct Range {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
  [[nodiscard]] bool overlaps(const Range& other) const { return begin < other.end && other.begin < end; }
  [[nodiscard]] bool holds(const Range& other) const { return begin <= other.begin && other.end <= end; }
};

/// Who used a range, and when.
struct Use {
  Range range;
  bool writes = false;
  int stream = 0;
  std::uint64_t count = 0;
};

/// Memory at two addresses: the visible one may be without access.
struct Memory {
  int device = -1;  ///< -1: pinned memory of the host
  Range range;
  std::byte* shadow = nullptr;
  std::vector<Use> uses;  ///< that the host does not know to be over
};

struct Stream {
  int number = 0;
  int device = 0;
  bool is_own = false;  ///< made by the driver's function
  Clock clock;
  std::uint64_t queued = 0;
  std::uint64_t done = 0;
  bool is_ending = false;
  std::deque<std::function<void()>> work;
  std::condition_variable changed;  ///< there is work
  std::thread thread;
};

struct Event {
  int device = 0;
  Stream* stream = nullptr;  ///< null: never recorded
  int number = 0;
  std::uint64_t count = 0;
  Clock clock;
};

struct World {
  std::mutex mutex;
  std::condition_variable done;  ///< a stream has done something
  std::mt19937 random;
  Options options;
  std::array<int, kDevices> retained{};
  std::map<Stream*, std::unique_ptr<Stream>> streams;
  std::array<Stream*, kDevices> default_streams{};
  std::map<Event*, std::unique_ptr<Event>> events;
  std::map<std::uintptr_t, Memory> memory;  ///< by its begin
  Clock host;
  std::vector<std::string> violations;
  Counts counts;
  std::map<int, cuda::Result> failing;
  int failing_copy = -1;
  bool is_broken = false;
  int next_stream = 0;
};

World& world() {
  static auto* const all = new World;  // threads of streams may outlive static objects
  return *all;
}

thread_local std::vector<int> contexts;  // NOLINT: the driver's stack

std::size_t whole_pages(std::size_t bytes) {
  return std::max<std::size_t>(1, (bytes + kPage - 1) / kPage) * kPage;
}

Range range_of(const void* memory, std::size_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  return {begin, begin + bytes};
}

// All of the following with the lock.

void violation(std::string text) {
  if (world().violations.size() < 20) world().violations.push_back(std::move(text));
}

Memory* memory_at(const Range& range) {
  auto found = world().memory.upper_bound(range.begin);
  if (found == world().memory.begin()) return nullptr;
  Memory& memory = std::prev(found)->second;
  return memory.range.holds(range) ? &memory : nullptr;
}

bool is_known(const Clock& clock, const Use& use) {
  const auto found = clock.find(use.stream);
  return found != clock.end() && found->second >= use.count;
}

void set_access(const Memory& memory, int access) {
  if (::mprotect(reinterpret_cast<void*>(memory.range.begin),  // NOLINT(performance-no-int-to-ptr)
                 whole_pages(memory.range.end - memory.range.begin), access) != 0) {
    std::abort();
  }
}

/// The host has learned that `clock` is over.
void tell_host(const Clock& clock) {
  join(world().host, clock);
  for (auto& [begin, memory] : world().memory) {
    if (memory.uses.empty()) continue;
    std::erase_if(memory.uses, [](const Use& use) { return is_known(world().host, use); });
    if (memory.uses.empty() && memory.device < 0) set_access(memory, PROT_READ | PROT_WRITE);
  }
}

Memory* make_memory(int device, std::size_t bytes) {
  const std::size_t size = whole_pages(bytes);
  const int file = ::memfd_create("fake_cuda", 0);
  if (file < 0 || ::ftruncate(file, static_cast<off_t>(size)) != 0) std::abort();
  void* shadow = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  const int access = device < 0 ? PROT_READ | PROT_WRITE : PROT_NONE;
  void* visible = ::mmap(nullptr, size, access, MAP_SHARED, file, 0);
  ::close(file);
  if (shadow == MAP_FAILED || visible == MAP_FAILED) std::abort();
  Memory memory{
      .device = device, .range = range_of(visible, bytes), .shadow = static_cast<std::byte*>(shadow), .uses = {}};
  return &(world().memory[memory.range.begin] = std::move(memory));
}

void drop_memory(const void* address) {
  const auto found = world().memory.find(reinterpret_cast<std::uintptr_t>(address));
  if (found == world().memory.end()) {
    violation("memory that is not there is freed");
    return;
  }
  const Memory& memory = found->second;
  if (!memory.uses.empty()) violation("memory is freed while something on a stream may still use it");
  const std::size_t size = whole_pages(memory.range.end - memory.range.begin);
  ::munmap(memory.shadow, size);
  // The address stays taken: nothing else gets it while the test runs.
  ::mmap(const_cast<void*>(address), size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  world().memory.erase(found);
}

std::byte* shadow_of(const Memory& memory, const Range& range) {
  return memory.shadow + (range.begin - memory.range.begin);
}

void run_stream(Stream& stream) {
  std::unique_lock lock(world().mutex);
  while (true) {
    stream.changed.wait(lock, [&] { return !stream.work.empty() || stream.is_ending; });
    if (stream.work.empty()) return;
    const auto work = std::move(stream.work.front());
    stream.work.pop_front();
    const auto most = world().options.max_delay.count();
    const std::chrono::microseconds delay(
        most == 0 ? 0 : std::uniform_int_distribution<std::int64_t>(0, most)(world().random));
    lock.unlock();
    if (delay.count() > 0) std::this_thread::sleep_for(delay);
    work();
    lock.lock();
    ++stream.done;
    world().done.notify_all();
  }
}

Stream* new_stream(int device, bool is_own) {
  auto made = std::make_unique<Stream>();
  Stream* const stream = made.get();
  stream->number = world().next_stream++;
  stream->device = device;
  stream->is_own = is_own;
  stream->thread = std::thread([stream] { run_stream(*stream); });
  world().streams.emplace(stream, std::move(made));
  return stream;
}

Stream* find_stream(void* handle, int device) {
  if (handle == nullptr) {
    Stream*& stream = world().default_streams[static_cast<std::size_t>(device)];
    if (stream == nullptr) stream = new_stream(device, false);
    return stream;
  }
  const auto found = world().streams.find(static_cast<Stream*>(handle));
  return found == world().streams.end() ? nullptr : found->first;
}

void queue(Stream& stream, std::function<void()> work) {
  join(stream.clock, world().host);
  stream.clock[stream.number] = ++stream.queued;
  stream.work.push_back(std::move(work));
  stream.changed.notify_all();
}

/// What is queued next on the stream will use the range.
void use(Stream& stream, Memory& memory, const Range& range, bool writes) {
  Clock now = stream.clock;
  join(now, world().host);
  const Use next{.range = range, .writes = writes, .stream = stream.number, .count = stream.queued + 1};
  for (const Use& before : memory.uses) {
    if (!before.range.overlaps(range) || (!before.writes && !writes)) continue;
    if (before.stream == next.stream && before.count == next.count) continue;
    if (memory.device < 0 ? !is_known(world().host, before)
                          : before.stream != stream.number && !is_known(now, before)) {
      violation(std::string(memory.device < 0 ? "pinned memory is used by a copy while" : "device memory is ") +
                (memory.device < 0 ? ""
                 : writes          ? "written while"
                                   : "read while") +
                " something may still " + (before.writes ? "write to" : "read") + " it");
    }
  }
  memory.uses.push_back(next);
  if (memory.device < 0) set_access(memory, PROT_NONE);
}

Clock clock_after(const Stream& stream) {
  Clock clock = stream.clock;
  clock[stream.number] = stream.queued;
  return clock;
}

void wait_for(Stream* stream, int number, std::uint64_t count, std::unique_lock<std::mutex>& lock) {
  const auto is_over = [&] {
    const auto found = world().streams.find(stream);
    return found == world().streams.end() || stream->number != number || stream->done >= count;
  };
  world().done.wait(lock, is_over);
}

/// Ends when what is queued is done.
void end_stream(Stream* stream, std::unique_lock<std::mutex>& lock) {
  wait_for(stream, stream->number, stream->queued, lock);
  stream->is_ending = true;
  stream->changed.notify_all();
  std::thread thread = std::move(stream->thread);
  lock.unlock();
  thread.join();
  lock.lock();
  world().streams.erase(stream);
}

/// A driver's function: fails when the test says so.
template <typename Body>
cuda::Result call(bool needs_context, Body body) {
  std::unique_lock lock(world().mutex);
  const auto failing = world().failing.find(world().counts.calls++);
  if (failing != world().failing.end()) return failing->second;
  if (world().is_broken) return kIllegalAddress;
  if (needs_context && (contexts.empty() || world().retained[static_cast<std::size_t>(contexts.back())] == 0)) {
    violation("a call without a context");
    return kInvalidContext;
  }
  return body(lock);
}

struct CopyJob {
  Range device_range;
  Range host_range;
  bool to_host = false;
  std::size_t width = 0;
  std::size_t height = 1;
  std::size_t device_pitch = 0;
  std::size_t host_pitch = 0;
};

cuda::Result queue_copy(void* handle, const CopyJob& job) {
  Stream* stream = find_stream(handle, contexts.back());
  if (stream == nullptr || stream->device != contexts.back()) {
    violation("a copy on a stream of another context");
    return kInvalidHandle;
  }
  Memory* device = memory_at(job.device_range);
  Memory* host = memory_at(job.host_range);
  if (device == nullptr || device->device != stream->device) {
    violation("a copy from or to what is no memory of the device");
    return kInvalidValue;
  }
  if (host == nullptr || host->device >= 0) {
    violation("a copy from or to memory that is not pinned");
    return kInvalidValue;
  }
  use(*stream, *device, job.device_range, !job.to_host);
  use(*stream, *host, job.host_range, job.to_host);
  std::byte* const on_device = shadow_of(*device, job.device_range);
  std::byte* const on_host = shadow_of(*host, job.host_range);
  const int number = world().counts.copies++;
  queue(*stream, [=] {
    {
      const std::lock_guard lock(world().mutex);
      if (number == world().failing_copy) world().is_broken = true;
      if (world().is_broken) return;
    }
    for (std::size_t row = 0; row < job.height; ++row) {
      std::byte* const a = on_device + row * job.device_pitch;
      std::byte* const b = on_host + row * job.host_pitch;
      std::memcpy(job.to_host ? b : a, job.to_host ? a : b, job.width);
    }
  });
  return cuda::kSuccess;
}

}  // namespace

void begin(const Options& options) {
  const std::lock_guard lock(world().mutex);
  world().random.seed(options.seed);
  world().options = options;
  world().violations.clear();
  world().failing.clear();
  world().failing_copy = -1;
  world().is_broken = false;
  world().counts.calls = 0;
  world().counts.copies = 0;
  world().counts.peak_pinned_bytes = world().counts.pinned_bytes;
}

std::vector<std::string> violations() {
  const std::lock_guard lock(world().mutex);
  return world().violations;
}

Counts counts() {
  const std::lock_guard lock(world().mutex);
  return world().counts;
}

void fail_call(int call, int result) {
  const std::lock_guard lock(world().mutex);
  world().failing[call] = result;
}

void fail_copy(int copy) {
  const std::lock_guard lock(world().mutex);
  world().failing_copy = copy;
}

std::byte* device_alloc(int device, std::size_t bytes) {
  const std::lock_guard lock(world().mutex);
  return reinterpret_cast<std::byte*>(make_memory(device, bytes)->range.begin);  // NOLINT(performance-no-int-to-ptr)
}

void device_free(std::byte* memory) {
  const std::lock_guard lock(world().mutex);
  drop_memory(memory);
}

void* make_stream(int device) {
  const std::lock_guard lock(world().mutex);
  return new_stream(device, false);
}

void drop_stream(void* stream) {
  std::unique_lock lock(world().mutex);
  auto* const dropped = static_cast<Stream*>(stream);
  const Clock clock = clock_after(*dropped);
  end_stream(dropped, lock);
  tell_host(clock);
}

void launch(void* stream, std::vector<Access> accesses, std::function<void()> body) {
  const std::lock_guard lock(world().mutex);
  auto* const on = static_cast<Stream*>(stream);
  for (const Access& access : accesses) {
    const Range range = range_of(access.memory, access.bytes);
    Memory* const memory = memory_at(range);
    if (memory == nullptr) std::abort();
    use(*on, *memory, range, access.writes);
  }
  queue(*on, std::move(body));
}

std::byte* shadow(const std::byte* memory) {
  const std::lock_guard lock(world().mutex);
  const Range range = range_of(memory, 0);
  return shadow_of(*memory_at(range), range);
}

void set(void* stream, std::byte* memory, std::vector<std::byte> content) {
  const std::size_t bytes = content.size();
  launch(stream, {{.memory = memory, .bytes = bytes, .writes = true}},
         [memory, content = std::move(content)] { std::memcpy(shadow(memory), content.data(), content.size()); });
}

std::vector<std::byte> get(void* stream, const std::byte* memory, std::size_t bytes) {
  std::vector<std::byte> content(bytes);
  launch(stream, {{.memory = memory, .bytes = bytes, .writes = false}},
         [&] { std::memcpy(content.data(), shadow(memory), bytes); });
  synchronize(stream);
  return content;
}

void synchronize(void* stream) {
  std::unique_lock lock(world().mutex);
  auto* const on = static_cast<Stream*>(stream);
  const Clock clock = clock_after(*on);
  wait_for(on, on->number, on->queued, lock);
  tell_host(clock);
}

// The driver's functions, by the names of libcuda.
extern "C" {

cuda::Result cuInit(unsigned) {
  return call(false, [](auto&) { return cuda::kSuccess; });
}

cuda::Result cuGetErrorName(cuda::Result result, const char** name) {
  static const std::map<cuda::Result, const char*> names = {{kInvalidValue, "CUDA_ERROR_INVALID_VALUE"},
                                                            {cuda::kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY"},
                                                            {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT"},
                                                            {kIllegalAddress, "CUDA_ERROR_ILLEGAL_ADDRESS"}};
  const auto found = names.find(result);
  *name = found == names.end() ? nullptr : found->second;
  return found == names.end() ? kInvalidValue : cuda::kSuccess;
}

cuda::Result cuGetErrorString(cuda::Result, const char** text) {
  *text = "a fake failure";
  return cuda::kSuccess;
}

cuda::Result cuDeviceGet(cuda::Device* device, int ordinal) {
  return call(false, [&](auto&) {
    *device = ordinal + 10;  // a handle, no ordinal
    return ordinal < 0 || ordinal >= kDevices ? cuda::kInvalidDevice : cuda::kSuccess;
  });
}

cuda::Result cuDevicePrimaryCtxRetain(cuda::Context* context, cuda::Device device) {
  return call(false, [&](auto&) {
    int& count = world().retained[static_cast<std::size_t>(device - 10)];
    ++count;
    ++world().counts.contexts;
    *context = &count;
    return cuda::kSuccess;
  });
}

cuda::Result cuDevicePrimaryCtxRelease_v2(cuda::Device device) {
  const std::lock_guard lock(world().mutex);
  --world().retained[static_cast<std::size_t>(device - 10)];
  --world().counts.contexts;
  return cuda::kSuccess;
}

cuda::Result cuCtxPushCurrent_v2(cuda::Context context) {
  return call(false, [&](auto&) {
    contexts.push_back(static_cast<int>(static_cast<int*>(context) - world().retained.data()));
    return cuda::kSuccess;
  });
}

cuda::Result cuCtxPopCurrent_v2(cuda::Context* context) {
  const std::lock_guard lock(world().mutex);
  if (contexts.empty()) {
    violation("a context is popped that was not pushed");
    return kInvalidContext;
  }
  *context = &world().retained[static_cast<std::size_t>(contexts.back())];
  contexts.pop_back();
  return cuda::kSuccess;
}

cuda::Result cuStreamCreate(cuda::Stream* stream, unsigned flags) {
  return call(true, [&](auto&) {
    if (flags != cuda::kStreamNonBlocking) violation("a stream that waits for the default stream");
    *stream = new_stream(contexts.back(), true);
    ++world().counts.streams;
    return cuda::kSuccess;
  });
}

cuda::Result cuStreamDestroy_v2(cuda::Stream stream) {
  std::unique_lock lock(world().mutex);
  auto* const ended = static_cast<Stream*>(stream);
  if (!ended->is_own) violation("a stream of the program is destroyed");
  end_stream(ended, lock);
  --world().counts.streams;
  return cuda::kSuccess;
}

cuda::Result cuStreamWaitEvent(cuda::Stream handle, cuda::Event handle_of_event, unsigned) {
  return call(true, [&](auto&) {
    const auto found = world().events.find(static_cast<Event*>(handle_of_event));
    Stream* const stream = find_stream(handle, contexts.back());
    if (found == world().events.end() || stream == nullptr || stream->device != contexts.back()) {
      violation("a wait on a stream of another context, or for no event");
      return kInvalidHandle;
    }
    const Event event = *found->second;
    if (event.stream == nullptr) return cuda::kSuccess;
    queue(*stream, [event] {
      std::unique_lock lock(world().mutex);
      wait_for(event.stream, event.number, event.count, lock);
    });
    join(stream->clock, event.clock);
    return cuda::kSuccess;
  });
}

cuda::Result cuStreamSynchronize(cuda::Stream handle) {
  return call(true, [&](auto& lock) {
    Stream* const stream = find_stream(handle, contexts.back());
    if (stream == nullptr) return kInvalidHandle;
    const Clock clock = clock_after(*stream);
    wait_for(stream, stream->number, stream->queued, lock);
    if (world().is_broken) return kIllegalAddress;
    tell_host(clock);
    return cuda::kSuccess;
  });
}

cuda::Result cuEventCreate(cuda::Event* event, unsigned flags) {
  return call(true, [&](auto&) {
    if ((flags & cuda::kEventDisableTiming) == 0) violation("an event that takes the time");
    auto made = std::make_unique<Event>();
    made->device = contexts.back();
    *event = made.get();
    Event* const key = made.get();
    world().events.emplace(key, std::move(made));
    ++world().counts.events;
    return cuda::kSuccess;
  });
}

cuda::Result cuEventDestroy_v2(cuda::Event event) {
  const std::lock_guard lock(world().mutex);
  if (world().events.erase(static_cast<Event*>(event)) == 0) violation("no event is destroyed");
  --world().counts.events;
  return cuda::kSuccess;
}

cuda::Result cuEventRecord(cuda::Event handle, cuda::Stream handle_of_stream) {
  return call(true, [&](auto&) {
    const auto found = world().events.find(static_cast<Event*>(handle));
    Stream* const stream = find_stream(handle_of_stream, contexts.back());
    if (found == world().events.end() || stream == nullptr || stream->device != found->second->device ||
        stream->device != contexts.back()) {
      violation("an event is recorded on a stream of another context");
      return kInvalidHandle;
    }
    Event& event = *found->second;
    event.stream = stream;
    event.number = stream->number;
    event.count = stream->queued;
    event.clock = clock_after(*stream);
    join(event.clock, world().host);
    return cuda::kSuccess;
  });
}

cuda::Result cuEventSynchronize(cuda::Event handle) {
  return call(true, [&](auto& lock) {
    const auto found = world().events.find(static_cast<Event*>(handle));
    if (found == world().events.end()) {
      violation("no event is waited for");
      return kInvalidHandle;
    }
    const Event event = *found->second;
    if (event.stream == nullptr) return cuda::kSuccess;
    wait_for(event.stream, event.number, event.count, lock);
    if (world().is_broken) return kIllegalAddress;
    tell_host(event.clock);
    return cuda::kSuccess;
  });
}

cuda::Result cuMemHostAlloc(void** memory, std::size_t bytes, unsigned flags) {
  return call(true, [&](auto&) {
    if (flags != cuda::kHostAllocPortable) violation("pinned memory that is not for every device");
    *memory = reinterpret_cast<void*>(make_memory(-1, bytes)->range.begin);  // NOLINT(performance-no-int-to-ptr)
    Counts& all = world().counts;
    all.pinned_bytes += bytes;
    all.peak_pinned_bytes = std::max(all.peak_pinned_bytes, all.pinned_bytes);
    return cuda::kSuccess;
  });
}

cuda::Result cuMemFreeHost(void* memory) {
  const std::lock_guard lock(world().mutex);
  if (contexts.empty()) violation("pinned memory is freed without a context");
  if (const Memory* found = memory_at(range_of(memory, 1))) {
    world().counts.pinned_bytes -= found->range.end - found->range.begin;
  }
  drop_memory(memory);
  return cuda::kSuccess;
}

cuda::Result cuMemcpyDtoHAsync_v2(void* target, cuda::DevicePointer source, std::size_t bytes, cuda::Stream stream) {
  return call(true, [&](auto&) {
    return queue_copy(stream, {.device_range = {source, source + bytes},
                               .host_range = range_of(target, bytes),
                               .to_host = true,
                               .width = bytes});
  });
}

cuda::Result cuMemcpyHtoDAsync_v2(cuda::DevicePointer target, const void* source, std::size_t bytes,
                                  cuda::Stream stream) {
  return call(true, [&](auto&) {
    return queue_copy(stream, {.device_range = {target, target + bytes},
                               .host_range = range_of(source, bytes),
                               .to_host = false,
                               .width = bytes});
  });
}

cuda::Result cuMemcpy2DAsync_v2(const cuda::Copy2D* copy, cuda::Stream stream) {
  return call(true, [&](auto&) {
    const bool to_host = copy->source_type == cuda::kMemoryDevice && copy->target_type == cuda::kMemoryHost;
    const bool to_device = copy->source_type == cuda::kMemoryHost && copy->target_type == cuda::kMemoryDevice;
    const std::size_t device_pitch = to_host ? copy->source_pitch : copy->target_pitch;
    const std::size_t host_pitch = to_host ? copy->target_pitch : copy->source_pitch;
    if ((!to_host && !to_device) || copy->height == 0 || device_pitch < copy->width_bytes ||
        host_pitch < copy->width_bytes || copy->source_x + copy->source_y + copy->target_x + copy->target_y != 0) {
      violation("a 2D copy that a device refuses");
      return kInvalidValue;
    }
    const std::uint64_t device = to_host ? copy->source_device : copy->target_device;
    const void* const host = to_host ? copy->target_host : copy->source_host;
    return queue_copy(stream, {.device_range = {device, device + (copy->height - 1) * device_pitch + copy->width_bytes},
                               .host_range = range_of(host, (copy->height - 1) * host_pitch + copy->width_bytes),
                               .to_host = to_host,
                               .width = copy->width_bytes,
                               .height = copy->height,
                               .device_pitch = device_pitch,
                               .host_pitch = host_pitch});
  });
}

}  // extern "C"

}  // namespace fake_cuda
