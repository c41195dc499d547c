// System calls and rings that misbehave as a test tells them to.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cerrno>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "storage/posix.h"
#include "storage/ring.h"

namespace torchsnapshot {

/// Calls `before(name)` ahead of each system call; a number other than 0 makes it fail with that errno.
class HookedSys : public Sys {
 public:
  virtual int before(const char* name) = 0;

  int open(const char* path, int flags, mode_t mode) override {
    return fails("open") ? -1 : Sys::open(path, flags, mode);
  }
  int close(int fd) override {
    // As on Linux the descriptor is gone even if close fails.
    const int result = Sys::close(fd);
    return fails("close") ? -1 : result;
  }
  ssize_t pread(int fd, void* data, std::size_t size, off_t offset) override {
    return fails("pread") ? -1 : Sys::pread(fd, data, size, offset);
  }
  ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
    return fails("pwrite") ? -1 : Sys::pwrite(fd, data, size, offset);
  }
  int fallocate(int fd, off_t size) override { return fails("fallocate") ? -1 : Sys::fallocate(fd, size); }
  int ftruncate(int fd, off_t size) override { return fails("ftruncate") ? -1 : Sys::ftruncate(fd, size); }
  // The disk itself is not under test.
  int start_writeback(int, off_t, off_t) override { return fails("start_writeback") ? -1 : 0; }
  int wait_writeback(int, off_t, off_t) override { return fails("wait_writeback") ? -1 : 0; }
  int drop_cache(int fd, off_t offset, off_t size) override {
    return fails("drop_cache") ? -1 : Sys::drop_cache(fd, offset, size);
  }
  int fsync(int) override { return fails("fsync") ? -1 : 0; }
  int fdatasync(int) override { return fails("fdatasync") ? -1 : 0; }
  int fstat(int fd, struct stat* info) override { return fails("fstat") ? -1 : Sys::fstat(fd, info); }
  int stat(const char* path, struct stat* info) override { return fails("stat") ? -1 : Sys::stat(path, info); }
  int mkdir(const char* path, mode_t mode) override { return fails("mkdir") ? -1 : Sys::mkdir(path, mode); }
  int rmdir(const char* path) override { return fails("rmdir") ? -1 : Sys::rmdir(path); }
  int unlink(const char* path) override { return fails("unlink") ? -1 : Sys::unlink(path); }
  int rename(const char* from, const char* to) override { return fails("rename") ? -1 : Sys::rename(from, to); }
  DIR* fdopendir(int fd) override { return fails("fdopendir") ? nullptr : Sys::fdopendir(fd); }
  dirent* readdir(DIR* dir) override { return fails("readdir") ? nullptr : Sys::readdir(dir); }
  int closedir(DIR* dir) override {
    const int result = Sys::closedir(dir);
    return fails("closedir") ? -1 : result;
  }
  int fstatat(int dir_fd, const char* name, struct stat* info, int flags) override {
    return fails("fstatat") ? -1 : Sys::fstatat(dir_fd, name, info, flags);
  }

  int is_in_memory(int fd, bool* answer) override { return fails("is_in_memory") ? -1 : Sys::is_in_memory(fd, answer); }
  int statx_direct(int fd, DirectIoInfo* info) override {
    return fails("statx_direct") ? -1 : Sys::statx_direct(fd, info);
  }
  int cachestat(int fd, off_t offset, std::size_t size, std::uint64_t* cached) override {
    return fails("cachestat") ? -1 : Sys::cachestat(fd, offset, size, cached);
  }
  int mincore(int fd, off_t offset, std::size_t size, std::uint64_t* cached) override {
    return fails("mincore") ? -1 : Sys::mincore(fd, offset, size, cached);
  }
  int is_local(int fd, bool* answer) override { return fails("is_local") ? -1 : Sys::is_local(fd, answer); }
  void* map(int fd, std::size_t size) override { return fails("map") ? nullptr : Sys::map(fd, size); }
  int populate(void* data, std::size_t size) override { return fails("populate") ? -1 : Sys::populate(data, size); }
  int depopulate(void* data, std::size_t size) override {
    return fails("depopulate") ? -1 : Sys::depopulate(data, size);
  }
  std::unique_ptr<Ring> make_ring(unsigned depth) override {
    return fails("make_ring") ? nullptr : Sys::make_ring(depth);
  }

 private:
  bool fails(const char* name) {
    const int error = before(name);
    if (error != 0) errno = error;
    return error != 0;
  }
};

/// What a FakeRing does other than a good ring would. Called by whichever thread uses a ring.
struct RingScript {
  /// errno of this submit(), or 0.
  std::function<int()> submit_error = [] { return 0; };
  /// errno of this wait(), or 0. It fails although something is under way.
  std::function<int()> wait_error = [] { return 0; };
  /// The result of a request instead of moving all of it: bytes, or -errno.
  std::function<int(const RingRequest&)> result = [](const RingRequest& request) {
    return static_cast<int>(request.size);
  };
  /// Requests that one submit() takes at most.
  std::size_t most_taken = 100;
  std::atomic<int> made = 0;   ///< rings
  std::atomic<int> moved = 0;  ///< requests
};

/// A ring that does its work when results are asked for, in a random order, and checks that it is used as it must be.
class FakeRing final : public Ring {
 public:
  FakeRing(std::shared_ptr<RingScript> script, unsigned depth) : script_(std::move(script)), depth_(depth) {
    ++script_->made;
  }
  ~FakeRing() override { EXPECT_TRUE(under_way_.empty()) << "the kernel still has requests"; }

  bool push(const RingRequest& request) override {
    if (queued_.size() + under_way_.size() >= depth_) return false;
    EXPECT_EQ(request.size % 4096, 0U);
    EXPECT_EQ(request.offset % 4096, 0);
    EXPECT_EQ(std::bit_cast<std::uintptr_t>(request.data) % 512, 0U);
    queued_.push_back(request);
    return true;
  }
  int submit() override {
    if (const int error = script_->submit_error(); error != 0) return fail(error);
    int taken = 0;
    for (; !queued_.empty() && taken < static_cast<int>(script_->most_taken); ++taken) {
      under_way_.push_back(queued_.front());
      queued_.pop_front();
    }
    return taken;
  }
  int wait() override {
    EXPECT_FALSE(under_way_.empty()) << "nothing to wait for: this would hang";
    if (const int error = script_->wait_error(); error != 0) {
      may_pop_ = error != EINTR;
      return fail(error);
    }
    may_pop_ = true;
    return 0;
  }
  std::optional<RingDone> pop() override {
    if (!may_pop_ || under_way_.empty()) return std::nullopt;
    may_pop_ = random_() % 2 == 0;  // sometimes two at once
    const auto at = under_way_.begin() + static_cast<std::ptrdiff_t>(random_() % under_way_.size());
    const RingRequest request = *at;
    under_way_.erase(at);
    ++script_->moved;
    const int result = script_->result(request);
    if (result <= 0) return RingDone{request.tag, result};
    const auto size = static_cast<std::size_t>(result);
    const ssize_t moved = request.is_write ? ::pwrite(request.fd, request.data, size, request.offset)
                                           : ::pread(request.fd, request.data, size, request.offset);
    return RingDone{request.tag, moved < 0 ? -errno : static_cast<int>(moved)};
  }

 private:
  static int fail(int error) {
    errno = error;
    return -1;
  }

  std::shared_ptr<RingScript> script_;
  const unsigned depth_;
  std::deque<RingRequest> queued_;
  std::deque<RingRequest> under_way_;
  bool may_pop_ = false;
  std::minstd_rand random_{1};
};

/// A machine with direct I/O whatever the real one has: O_DIRECT is left out of open, and the alignment of transfers is
/// checked here instead. The rings are FakeRings. Each part can be switched off or made to fail.
class PretendSys : public HookedSys {
 public:
  std::function<int(std::string_view)> error = [](std::string_view) { return 0; };  ///< errno of a call, by its name
  std::function<int()> direct_error = [] { return 0; };  ///< errno of pread and pwrite of a file opened with O_DIRECT
  /// How much of a direct pread or pwrite is done, given its size.
  std::function<std::size_t(std::size_t)> direct_size = [](std::size_t size) { return size; };
  int open_direct_error = 0;
  DirectIoInfo direct_info{true, 512, 512};
  bool is_cached = false;  ///< what cachestat and mincore say
  bool has_memory_only = false;
  std::shared_ptr<RingScript> script = std::make_shared<RingScript>();
  std::atomic<int> direct_opens = 0;
  std::atomic<int> direct_transfers = 0;
  std::atomic<int> buffered_transfers = 0;

  int before(const char* name) override { return error(name); }

  int open(const char* path, int flags, mode_t mode) override {
    const bool is_direct = (flags & O_DIRECT) != 0;
    if (is_direct && open_direct_error != 0) return fail(open_direct_error);
    const int fd = HookedSys::open(path, flags & ~O_DIRECT, mode);
    if (fd < 0) return fd;
    direct_opens += is_direct ? 1 : 0;
    const std::lock_guard lock(mutex_);
    if (is_direct) {
      direct_.insert(fd);
    } else {
      direct_.erase(fd);
    }
    return fd;
  }
  ssize_t pread(int fd, void* data, std::size_t size, off_t offset) override {
    if (!is_direct(fd)) return ++buffered_transfers, HookedSys::pread(fd, data, size, offset);
    check(data, size, offset);
    if (const int failure = direct_error(); failure != 0) return fail(failure);
    return HookedSys::pread(fd, data, direct_size(size), offset);
  }
  ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
    if (!is_direct(fd)) return ++buffered_transfers, HookedSys::pwrite(fd, data, size, offset);
    check(data, size, offset);
    if (const int failure = direct_error(); failure != 0) return fail(failure);
    return HookedSys::pwrite(fd, data, direct_size(size), offset);
  }
  int is_in_memory(int fd, bool* answer) override {
    const int result = HookedSys::is_in_memory(fd, answer);
    *answer = has_memory_only;
    return result;
  }
  int statx_direct(int fd, DirectIoInfo* info) override {
    const int result = HookedSys::statx_direct(fd, info);
    *info = direct_info;
    return result;
  }
  int cachestat(int, off_t, std::size_t size, std::uint64_t* cached) override {
    return tell("cachestat", size, cached);
  }
  int mincore(int, off_t, std::size_t size, std::uint64_t* cached) override { return tell("mincore", size, cached); }
  std::unique_ptr<Ring> make_ring(unsigned depth) override {
    if (const int failure = error("make_ring"); failure != 0) {
      errno = failure;
      return nullptr;
    }
    return std::make_unique<FakeRing>(script, depth);
  }

 protected:
  bool is_direct(int fd) {
    const std::lock_guard lock(mutex_);
    return direct_.contains(fd);
  }

 private:
  void check(const void* data, std::size_t size, off_t offset) {
    ++direct_transfers;
    EXPECT_EQ(std::bit_cast<std::uintptr_t>(data) % 512, 0U);
    EXPECT_EQ(size % 4096, 0U);
    EXPECT_EQ(offset % 4096, 0);
  }
  int tell(const char* call, std::size_t size, std::uint64_t* cached) {
    if (const int failure = error(call); failure != 0) return fail(failure);
    *cached = is_cached ? size : 0;
    return 0;
  }
  static int fail(int failure) {
    errno = failure;
    return -1;
  }

  std::mutex mutex_;
  std::set<int> direct_;
};

inline int open_descriptors() {
  int count = 0;
  for ([[maybe_unused]] const auto& item : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

}  // namespace torchsnapshot
