// A queue of reads and writes that are under way at once: io_uring as a small interface, so that a test can make it
// misbehave.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

namespace torchsnapshot {

struct RingRequest {
  bool is_write = false;
  int fd = -1;
  void* data = nullptr;  ///< belongs to the kernel until the request has ended
  std::size_t size = 0;  ///< at most 1 GiB
  off_t offset = 0;
  std::uint64_t tag = 0;  ///< comes back with the result
};

struct RingDone {
  std::uint64_t tag = 0;
  int result = 0;  ///< bytes moved, or -errno
};

/// Requests to the kernel and their results. For one thread at a time. Failures are -1 and errno. Must be idle
/// (every request that was taken has been popped) when it is destroyed.
class Ring {
 public:
  virtual ~Ring() = default;
  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  /// Queues a request; false when there is no room.
  virtual bool push(const RingRequest& request) = 0;
  /// Hands queued requests to the kernel, in order, and returns how many it took. The others stay queued.
  virtual int submit() = 0;
  /// Blocks until some request has ended; EINTR when a signal came first.
  virtual int wait() = 0;
  /// The result of one request that has ended, if there is one.
  virtual std::optional<RingDone> pop() = 0;
};

/// A real ring. Null and errno when the kernel, its settings or a seccomp filter don't allow one, and ENOSYS when this
/// build has none. In a forked child it does nothing any more, and its destructor leaves all to the parent.
std::unique_ptr<Ring> make_uring(unsigned depth);

/// Whether this build can use io_uring.
bool is_uring_built_in() noexcept;

}  // namespace torchsnapshot
