#include "storage/posix.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>
#include <vector>

#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

// The kernel moves at most 2 GiB less a page in one call.
constexpr std::size_t kMaxTransfer = 1 << 30;

// What the kernel has since 6.5 and the C library does not know.
#ifdef SYS_cachestat
constexpr long kCachestat = SYS_cachestat;
#elif defined(__alpha__)
constexpr long kCachestat = 561;
#else
constexpr long kCachestat = 451;
#endif
constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ, Linux 5.14
struct CachestatRange {
  std::uint64_t offset;
  std::uint64_t size;
};
struct Cachestat {  // in pages
  std::uint64_t cached;
  std::uint64_t dirty;
  std::uint64_t in_writeback;
  std::uint64_t evicted;
  std::uint64_t recently_evicted;
};

std::uint64_t page_size() noexcept {
  static const auto size = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

std::string_view remedy_for(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kPermissionDenied:
      return "; check the permissions of the path and of the folders above it";
    case ErrorCode::kNoSpace:
      return "; free some space or quota, or choose another place";
    case ErrorCode::kNotADirectory:
      return "; a part of the path that must be a folder is a file, or the reverse";
    default:
      return "";
  }
}

}  // namespace

int Sys::open(const char* path, int flags, mode_t mode) {
  return ::open(path, flags, mode);
}
int Sys::close(int fd) {
  return ::close(fd);
}
ssize_t Sys::pread(int fd, void* data, std::size_t size, off_t offset) {
  return ::pread(fd, data, size, offset);
}
ssize_t Sys::pwrite(int fd, const void* data, std::size_t size, off_t offset) {
  return ::pwrite(fd, data, size, offset);
}
int Sys::fallocate(int fd, off_t size) {
  return ::fallocate(fd, 0, 0, size);
}
int Sys::ftruncate(int fd, off_t size) {
  return ::ftruncate(fd, size);
}
int Sys::start_writeback(int fd, off_t offset, off_t size) {
  return ::sync_file_range(fd, offset, size, SYNC_FILE_RANGE_WRITE);
}
int Sys::wait_writeback(int fd, off_t offset, off_t size) {
  return ::sync_file_range(fd, offset, size,
                           SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
}
int Sys::drop_cache(int fd, off_t offset, off_t size) {
  errno = ::posix_fadvise(fd, offset, size, POSIX_FADV_DONTNEED);
  return errno == 0 ? 0 : -1;
}
int Sys::fsync(int fd) {
  return ::fsync(fd);
}
int Sys::fdatasync(int fd) {
  return ::fdatasync(fd);
}
int Sys::fstat(int fd, struct stat* info) {
  return ::fstat(fd, info);
}
int Sys::stat(const char* path, struct stat* info) {
  return ::stat(path, info);
}
int Sys::mkdir(const char* path, mode_t mode) {
  return ::mkdir(path, mode);
}
int Sys::rmdir(const char* path) {
  return ::rmdir(path);
}
int Sys::unlink(const char* path) {
  return ::unlink(path);
}
int Sys::rename(const char* from, const char* to) {
  return ::rename(from, to);
}
DIR* Sys::fdopendir(int fd) {
  return ::fdopendir(fd);
}
dirent* Sys::readdir(DIR* dir) {
  return ::readdir(dir);
}
int Sys::closedir(DIR* dir) {
  return ::closedir(dir);
}
int Sys::fstatat(int dir_fd, const char* name, struct stat* info, int flags) {
  return ::fstatat(dir_fd, name, info, flags);
}
int Sys::is_in_memory(int fd, bool* answer) {
  struct statfs info {};
  if (::fstatfs(fd, &info) != 0) return -1;
  *answer = info.f_type == TMPFS_MAGIC || info.f_type == RAMFS_MAGIC;
  return 0;
}
int Sys::statx_direct(int fd, DirectIoInfo* info) {
  *info = {};
#ifdef STATX_DIOALIGN
  struct statx all {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &all) != 0) return -1;
  if ((all.stx_mask & STATX_DIOALIGN) != 0) *info = {true, all.stx_dio_mem_align, all.stx_dio_offset_align};
  return 0;
#else
  static_cast<void>(fd);
  return 0;  // built with headers of a kernel before 6.1: it is found out by trying
#endif
}
int Sys::cachestat(int fd, off_t offset, std::size_t size, std::uint64_t* cached) {
  CachestatRange range{static_cast<std::uint64_t>(offset), size};
  Cachestat pages{};
  if (::syscall(kCachestat, fd, &range, &pages, 0U) != 0) return -1;
  *cached = std::min<std::uint64_t>(pages.cached * page_size(), size);
  return 0;
}
int Sys::mincore(int fd, off_t offset, std::size_t size, std::uint64_t* cached) {
  const std::uint64_t page = page_size();
  const std::uint64_t before = static_cast<std::uint64_t>(offset) % page;
  const std::size_t length = size + before;
  void* data = ::mmap(nullptr, length, PROT_READ, MAP_SHARED, fd, offset - static_cast<off_t>(before));
  if (data == MAP_FAILED) return -1;
  std::vector<unsigned char> pages((length + page - 1) / page);
  const int result = ::mincore(data, length, pages.data());
  const int error = errno;
  ::munmap(data, length);
  errno = error;
  if (result != 0) return -1;
  const auto count =
      std::count_if(pages.begin(), pages.end(), [](unsigned char in_core) { return (in_core & 1) != 0; });
  *cached = std::min<std::uint64_t>(static_cast<std::uint64_t>(count) * page, size);
  return 0;
}
int Sys::is_local(int fd, bool* answer) {
  struct statfs info {};
  if (::fstatfs(fd, &info) != 0) return -1;
  constexpr std::array<std::uint32_t, 5> kLocal{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, F2FS_SUPER_MAGIC,
                                                TMPFS_MAGIC};
  *answer = std::find(kLocal.begin(), kLocal.end(), static_cast<std::uint32_t>(info.f_type)) != kLocal.end();
  return 0;
}
void* Sys::map(int fd, std::size_t size) {
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  return data == MAP_FAILED ? nullptr : data;
}
void Sys::unmap(void* data, std::size_t size) {
  ::munmap(data, size);
}
int Sys::populate(void* data, std::size_t size) {
  return ::madvise(data, size, kPopulateRead);
}
int Sys::depopulate(void* data, std::size_t size) {
  return ::madvise(data, size, MADV_DONTNEED);
}
std::unique_ptr<Ring> Sys::make_ring(unsigned depth) {
  return make_uring(depth);
}

const std::shared_ptr<Sys>& Sys::real() {
  static const auto sys = std::make_shared<Sys>();
  return sys;
}

void throw_sys_error(int sys_errno, std::string_view operation, std::string_view path) {
  const Error error = errno_error(sys_errno, std::string(operation) + " " + std::string(path));
  throw Error(error.code(), error.what() + std::string(remedy_for(error.code())), sys_errno);
}

std::string error_text(int sys_errno) {
  return std::generic_category().message(sys_errno);
}

FileDescriptor::FileDescriptor(std::shared_ptr<Sys> sys, int fd) noexcept : sys_(std::move(sys)), fd_(fd) {}

FileDescriptor::FileDescriptor(FileDescriptor&& other) noexcept
    : sys_(std::move(other.sys_)), fd_(std::exchange(other.fd_, -1)) {}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  FileDescriptor taken(std::move(other));
  std::swap(sys_, taken.sys_);
  std::swap(fd_, taken.fd_);
  return *this;
}

FileDescriptor::~FileDescriptor() {
  static_cast<void>(close());
}

int FileDescriptor::close() noexcept {
  if (fd_ < 0) return 0;
  // Linux frees the descriptor whatever close() returns, so it is never repeated; EINTR is no failure.
  const int result = sys_->close(std::exchange(fd_, -1));
  return result == 0 || errno == EINTR ? 0 : errno;
}

int FileDescriptor::release() noexcept {
  return std::exchange(fd_, -1);
}

FileDescriptor open_file(const std::shared_ptr<Sys>& sys, const std::string& path, int flags) {
  constexpr mode_t kAnyone = 0666;  // less the umask
  return {sys, retry_eintr([&] { return sys->open(path.c_str(), flags | O_CLOEXEC, kAnyone); })};
}

std::size_t read_fully(Sys& sys, int fd, std::uint64_t offset, std::span<std::byte> out, std::string_view path) {
  std::size_t done = 0;
  while (done < out.size()) {
    const std::size_t size = std::min(out.size() - done, kMaxTransfer);
    const ssize_t got =
        retry_eintr([&] { return sys.pread(fd, out.data() + done, size, static_cast<off_t>(offset + done)); });
    if (got < 0) throw_sys_error(errno, "read", path);
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

void write_fully(Sys& sys, int fd, std::uint64_t offset, std::span<const std::byte> data, std::string_view path) {
  std::size_t done = 0;
  while (done < data.size()) {
    const std::size_t size = std::min(data.size() - done, kMaxTransfer);
    const ssize_t put =
        retry_eintr([&] { return sys.pwrite(fd, data.data() + done, size, static_cast<off_t>(offset + done)); });
    if (put < 0) throw_sys_error(errno, "write", path);
    if (put == 0) throw_sys_error(EIO, "write (no byte taken)", path);
    done += static_cast<std::size_t>(put);
  }
}

}  // namespace torchsnapshot
