#include "storage/ring.h"

#ifdef TORCHSNAPSHOT_HAVE_URING

#include <liburing.h>
#include <unistd.h>

#include <cerrno>

namespace torchsnapshot {
namespace {

class Uring final : public Ring {
 public:
  /// 0 or -errno.
  int open(unsigned depth) noexcept {
    // COOP_TASKRUN (5.19): completions don't interrupt this thread, which is about to wait for them anyway.
    int result = -EINVAL;
#ifdef IORING_SETUP_COOP_TASKRUN
    result = io_uring_queue_init(depth, &ring_, IORING_SETUP_COOP_TASKRUN);
#endif
    if (result == -EINVAL) result = io_uring_queue_init(depth, &ring_, 0);
    if (result == 0) owner_ = ::getpid();
    return result;
  }

  ~Uring() override {
    // A child has the parent's descriptor and memory, if it has not closed or unmapped them: hands off.
    if (owner_ == ::getpid()) io_uring_queue_exit(&ring_);
  }

  bool push(const RingRequest& request) override {
    if (!is_ours()) return false;
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    if (entry == nullptr) return false;
    const auto size = static_cast<unsigned>(request.size);
    const auto offset = static_cast<__u64>(request.offset);
    if (request.is_write) {
      io_uring_prep_write(entry, request.fd, request.data, size, offset);
    } else {
      io_uring_prep_read(entry, request.fd, request.data, size, offset);
    }
    entry->user_data = request.tag;
    return true;
  }

  int submit() override {
    return is_ours() ? checked(io_uring_submit(&ring_)) : -1;
  }

  int wait() override {
    if (!is_ours()) return -1;
    io_uring_cqe* entry = nullptr;
    return checked(io_uring_wait_cqe(&ring_, &entry));
  }

  std::optional<RingDone> pop() override {
    io_uring_cqe* entry = nullptr;
    if (!is_ours() || io_uring_peek_cqe(&ring_, &entry) != 0 || entry == nullptr) return std::nullopt;
    const RingDone done{entry->user_data, entry->res};
    io_uring_cqe_seen(&ring_, entry);
    return done;
  }

 private:
  [[nodiscard]] bool is_ours() const noexcept {
    if (owner_ == ::getpid()) return true;
    errno = EBADF;
    return false;
  }

  static int checked(int result) noexcept {
    if (result >= 0) return result;
    errno = -result;
    return -1;
  }

  io_uring ring_{};
  pid_t owner_ = 0;
};

}  // namespace

std::unique_ptr<Ring> make_uring(unsigned depth) {
  auto ring = std::make_unique<Uring>();
  if (const int result = ring->open(depth); result != 0) {
    ring.reset();
    errno = -result;
    return nullptr;
  }
  return ring;
}

bool is_uring_built_in() noexcept {
  return true;
}

}  // namespace torchsnapshot

#else

#include <cerrno>

namespace torchsnapshot {

std::unique_ptr<Ring> make_uring(unsigned /*depth*/) {
  errno = ENOSYS;
  return nullptr;
}

bool is_uring_built_in() noexcept {
  return false;
}

}  // namespace torchsnapshot

#endif
