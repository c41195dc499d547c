// A CUDA driver for tests: the functions that the engine uses (src/device/cuda_driver.h), on the CPU. Each stream is a
// thread that executes what is queued late. It finds what a GPU would only sometimes punish:
//  - device memory can't be touched by the CPU: its addresses are there, but without access (SIGSEGV);
//  - pinned memory can't be touched while a copy uses it that the host does not know to be over (SIGSEGV);
//  - accesses to the same memory that nothing orders (by vector clocks, so whatever the timing), pinned memory used
//    by a copy before the host knows the one before to be over, copies from or to memory that is not pinned or was
//    freed, calls without or with another device's context: violations().
// Thread-safe.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace fake_cuda {

struct Options {
  unsigned seed = 0;
  std::chrono::microseconds max_delay{50};  ///< before each thing that a stream does
};

/// Forgets failures, violations and counts. Nothing may be under way.
void begin(const Options& options);

/// What went wrong since begin().
std::vector<std::string> violations();

/// What exists now. Streams and memory of the test itself don't count.
struct Counts {
  int contexts = 0;  ///< retained
  int streams = 0;
  int events = 0;
  std::size_t pinned_bytes = 0;
  std::size_t peak_pinned_bytes = 0;  ///< since begin()
  int calls = 0;                      ///< that can fail, since begin()
  int copies = 0;
};
Counts counts();

/// The `call`-th call (from 0, since begin()) of those that can fail returns `result`, and does nothing.
void fail_call(int call, int result);
/// The `copy`-th copy fails when it is executed, and so does everything after it, as after a fault of a kernel.
void fail_copy(int copy);

/// Memory of a device; there are two devices.
std::byte* device_alloc(int device, std::size_t bytes);
void device_free(std::byte* memory);

/// The program's streams. drop_stream waits for what is queued.
void* make_stream(int device);
void drop_stream(void* stream);

struct Access {
  const std::byte* memory = nullptr;  ///< of a device
  std::size_t bytes = 0;
  bool writes = false;
};
/// Queues a kernel with these accesses. `body` uses shadow().
void launch(void* stream, std::vector<Access> accesses, std::function<void()> body);
/// The CPU's way to device memory; for bodies of kernels.
std::byte* shadow(const std::byte* memory);

/// Queues a kernel that sets memory.
void set(void* stream, std::byte* memory, std::vector<std::byte> content);
/// Queues a kernel that reads memory, and waits for it.
std::vector<std::byte> get(void* stream, const std::byte* memory, std::size_t bytes);
/// Waits for all that is queued on a stream.
void synchronize(void* stream);

}  // namespace fake_cuda
