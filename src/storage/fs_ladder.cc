#include "storage/fs_ladder.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

// Offsets and sizes of direct transfers are multiples of this at least: no page of any common size of the page cache's
// blocks is shared by a direct and a buffered write.
constexpr std::size_t kPageBytes = 4096;
// A device that asks for more than this is left to the page cache.
constexpr std::size_t kMaxAlign = 64 << 10;

bool is_power_of_two(std::size_t value) noexcept {
  return value != 0 && (value & (value - 1)) == 0;
}

Rung highest(IoMode mode) noexcept {
  if (mode == IoMode::kBuffered) return Rung::kBuffered;
  return mode == IoMode::kDirect ? Rung::kDirect : Rung::kUring;
}

Rung lowest(IoMode mode) noexcept {
  if (mode == IoMode::kUring) return Rung::kUring;
  return mode == IoMode::kDirect ? Rung::kDirect : Rung::kBuffered;
}

}  // namespace

IoMode parse_io_mode(std::string_view text) {
  if (text == "auto") return IoMode::kAuto;
  if (text == "uring") return IoMode::kUring;
  if (text == "direct") return IoMode::kDirect;
  if (text == "buffered") return IoMode::kBuffered;
  throw Error(ErrorCode::kInvalidArgument,
              "storage option 'io' is '" + std::string(text) + "': it may be auto, uring, direct or buffered");
}

std::string_view to_string(Rung rung) noexcept {
  switch (rung) {
    case Rung::kUring:
      return "io_uring + O_DIRECT";
    case Rung::kDirect:
      return "threads + O_DIRECT";
    case Rung::kBuffered:
      break;
  }
  return "page cache";
}

FsLadder::FsLadder(std::shared_ptr<Sys> sys, const FsTuning& tuning, std::string name)
    : sys_(std::move(sys)), tuning_(tuning), name_(std::move(name)) {}

std::shared_ptr<DirectDevice> FsLadder::device_of(int fd, const std::string& path, bool is_new) {
  struct stat info {};
  if (sys_->fstat(fd, &info) != 0) throw_sys_error(errno, "stat", "fs://" + path);
  const auto known = [&]() -> std::shared_ptr<DirectDevice> {
    const std::lock_guard lock(mutex_);
    for (const auto& [number, device] : devices_) {
      if (number == info.st_dev) return device;
    }
    return nullptr;
  };
  if (auto device = known()) return device;
  const std::lock_guard decide_lock(decide_mutex_);
  if (auto device = known()) return device;
  auto device = decide(fd, path, is_new);
  const std::lock_guard lock(mutex_);
  devices_.emplace_back(info.st_dev, device);
  return device;
}

// 1. Alignment, from statx or by trying. 2. A ring, if this build and the mode want one. What fails takes the device
// one rung down.
std::shared_ptr<DirectDevice> FsLadder::decide(int fd, const std::string& path, bool is_new) {
  auto device = std::make_shared<DirectDevice>();
  device->rung = highest(tuning_.mode);
  if (device->rung == Rung::kBuffered || !find_align(*device, fd, path, is_new)) return device;
  if (device->rung == Rung::kUring) {
    const auto rings = pool();
    if (auto ring = rings->take_ring()) {
      rings->give_back(std::move(ring));
    } else if (errno == ENOSYS && !is_uring_built_in() && tuning_.mode == IoMode::kAuto) {
      device->rung = Rung::kDirect;  // told when it was built
    } else {
      fall(*device, Rung::kDirect, "io_uring_setup: " + error_text(errno));
    }
  }
  return device;
}

bool FsLadder::find_align(DirectDevice& device, int fd, const std::string& path, bool is_new) {
  DirectIoInfo info;
  bool is_memory = false;
  if (sys_->is_in_memory(fd, &is_memory) == 0 && is_memory) {
    // The page cache is where the data lives, so nothing is lost and there is nothing to tell.
    if (lowest(tuning_.mode) == Rung::kBuffered) {
      device.rung = Rung::kBuffered;
    } else {
      fall(device, Rung::kBuffered, "the file system is in memory");
    }
    return false;
  }
  if (sys_->statx_direct(fd, &info) == 0 && info.is_known) {
    if (info.memory == 0 || info.offset == 0) {
      fall(device, Rung::kBuffered, "the file system has no direct I/O for this file");
      return false;
    }
    if (!is_power_of_two(info.memory) || !is_power_of_two(info.offset) ||
        std::max(info.memory, info.offset) > kMaxAlign) {
      fall(device, Rung::kBuffered,
           "direct I/O is possible only in units of " + std::to_string(info.offset) + " bytes");
      return false;
    }
    device.align = {info.memory, std::max(info.offset, kPageBytes)};
    return true;
  }
  // Not told: found out by a real transfer, once with less, once with more alignment of the memory.
  const FileDescriptor direct = open_direct(device, fd, path, is_new);
  if (!direct.is_open()) return false;
  for (const DirectAlign align : {DirectAlign{512, kPageBytes}, DirectAlign{kPageBytes, kPageBytes}}) {
    if (try_align(direct.get(), is_new, align)) {
      device.align = align;
      return true;
    }
  }
  fall(device, Rung::kBuffered, std::string("a trial of direct I/O: ") + error_text(errno));
  return false;
}

bool FsLadder::try_align(int fd, bool is_new, DirectAlign align) const {
  const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(kPageBytes, 3 * kPageBytes), &std::free);
  if (!memory) {
    errno = ENOMEM;
    return false;
  }
  std::memset(memory.get(), 0, 3 * kPageBytes);
  // An address that is a multiple of align.memory and of nothing more.
  std::byte* data = static_cast<std::byte*>(memory.get()) + align.memory % kPageBytes;
  const ssize_t moved = retry_eintr(
      [&] { return is_new ? sys_->pwrite(fd, data, align.offset, 0) : sys_->pread(fd, data, align.offset, 0); });
  if (moved >= 0 && static_cast<std::size_t>(moved) != align.offset) errno = EIO;  // files this short never get here
  return moved == static_cast<ssize_t>(align.offset);
}

FileDescriptor FsLadder::open_direct(DirectDevice& device, int fd, const std::string& path, bool for_write) {
  // Through the name once more, because each open has its own O_DIRECT.
  FileDescriptor direct = open_file(sys_, path, (for_write ? O_WRONLY : O_RDONLY | O_NONBLOCK) | O_DIRECT);
  if (!direct.is_open()) {
    const int error = errno;
    if (error == ENOENT) return direct;  // removed, or replaced, meanwhile: what is open stays right
    if (error == EINVAL || error == EOPNOTSUPP || error == EACCES || error == EPERM) {
      fall(device, Rung::kBuffered, "open with O_DIRECT: " + error_text(error));
      return direct;
    }
    throw_sys_error(error, "open with O_DIRECT", "fs://" + path);
  }
  struct stat mine {};
  struct stat there {};
  if (sys_->fstat(fd, &mine) != 0 || sys_->fstat(direct.get(), &there) != 0) {
    throw_sys_error(errno, "stat", "fs://" + path);
  }
  if (mine.st_dev != there.st_dev || mine.st_ino != there.st_ino) return {};
  return direct;
}

void FsLadder::fall(DirectDevice& device, Rung rung, const std::string& why) {
  const std::string what = name_ + ": " + std::string(rung == Rung::kBuffered ? "O_DIRECT" : "io_uring") +
                           " can't be used here (" + why + ")";
  if (rung < lowest(tuning_.mode)) {
    throw Error(ErrorCode::kUnsupported, what + ", and the storage option 'io' allows nothing else; 'auto' does");
  }
  Rung before = device.rung.load();
  while (before > rung) {
    if (!device.rung.compare_exchange_weak(before, rung)) continue;
    const std::lock_guard lock(mutex_);
    notices_.push_back(what + (rung == Rung::kBuffered ? "; data goes through the page cache, which is slower on disks"
                                                       : "; threads do the same work, nearly as fast"));
    return;
  }
}

std::shared_ptr<TransferPool> FsLadder::pool() {
  const std::lock_guard lock(mutex_);
  auto pool = pool_.lock();
  if (!pool || pool_owner_ != ::getpid()) {  // in a forked child what the parent's threads had out never comes back
    pool = std::make_shared<TransferPool>(sys_);
    pool_ = pool;
    pool_owner_ = ::getpid();
  }
  return pool;
}

std::string FsLadder::describe() const {
  if (tuning_.mode == IoMode::kBuffered) return std::string(to_string(Rung::kBuffered));
  const std::lock_guard lock(mutex_);
  std::string text;
  for (const auto& [number, device] : devices_) {
    const std::string_view rung = to_string(device->rung.load());
    if (text.find(rung) == std::string::npos) text.append(text.empty() ? "" : ", ").append(rung);
  }
  return text;
}

std::vector<std::string> FsLadder::take_notices() {
  const std::lock_guard lock(mutex_);
  return std::exchange(notices_, {});
}

}  // namespace torchsnapshot
