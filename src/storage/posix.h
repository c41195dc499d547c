// The seam to the operating system: every system call of the fs backend goes through Sys, so that a test can
// make each of them fail; and above it the few operations that handle EINTR and short transfers.
#pragma once

#include <dirent.h>
#include <sys/stat.h>
#include <sys/types.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "storage/ring.h"

namespace torchsnapshot {

/// What statx says of direct I/O on a file.
struct DirectIoInfo {
  bool is_known = false;   ///< false: this kernel or file system doesn't tell
  std::size_t memory = 0;  ///< addresses must be multiples of this; 0: no direct I/O on this file
  std::size_t offset = 0;  ///< offsets and sizes must be multiples of this; 0: no direct I/O on this file
};

/// System calls with the meaning of section 2 of the manual: -1 (or null) and errno on failure. The
/// methods here are the real ones; a test overrides some. Thread-safe.
class Sys {
 public:
  virtual ~Sys() = default;
  Sys() = default;
  Sys(const Sys&) = delete;
  Sys& operator=(const Sys&) = delete;

  virtual int open(const char* path, int flags, mode_t mode);
  virtual int close(int fd);
  virtual ssize_t pread(int fd, void* data, std::size_t size, off_t offset);
  virtual ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset);
  virtual int fallocate(int fd, off_t size);  ///< mode 0, from offset 0
  virtual int ftruncate(int fd, off_t size);
  virtual int start_writeback(int fd, off_t offset, off_t size);  ///< sync_file_range, without waiting
  virtual int wait_writeback(int fd, off_t offset, off_t size);   ///< sync_file_range, until the range is written
  virtual int drop_cache(int fd, off_t offset, off_t size);       ///< posix_fadvise(DONTNEED)
  virtual int fsync(int fd);
  virtual int fdatasync(int fd);
  virtual int fstat(int fd, struct stat* info);
  virtual int stat(const char* path, struct stat* info);
  virtual int mkdir(const char* path, mode_t mode);
  virtual int rmdir(const char* path);
  virtual int unlink(const char* path);
  virtual int rename(const char* from, const char* to);
  virtual DIR* fdopendir(int fd);
  virtual dirent* readdir(DIR* dir);
  virtual int closedir(DIR* dir);
  virtual int fstatat(int dir_fd, const char* name, struct stat* info, int flags);
  virtual int is_in_memory(int fd, bool* answer);        ///< fstatfs: tmpfs or ramfs
  virtual int statx_direct(int fd, DirectIoInfo* info);  ///< statx(STATX_DIOALIGN)
  /// cachestat: how many bytes of the range lie in the page cache.
  virtual int cachestat(int fd, off_t offset, std::size_t size, std::uint64_t* cached);
  /// The same by mmap, mincore and munmap. On a file that is neither ours nor writable the kernel says "all of it".
  virtual int mincore(int fd, off_t offset, std::size_t size, std::uint64_t* cached);
  virtual int is_local(int fd, bool* answer);  ///< fstatfs: a file system of this machine's disks or memory
  /// mmap of the beginning of a file, shared, to read. Null and errno on failure.
  virtual void* map(int fd, std::size_t size);
  virtual void unmap(void* data, std::size_t size);
  virtual int populate(void* data, std::size_t size);    ///< MADV_POPULATE_READ: all pages of mapped memory are there
  virtual int depopulate(void* data, std::size_t size);  ///< MADV_DONTNEED
  /// io_uring_setup and its mmaps. Null and errno on failure; ENOSYS also where this build has no io_uring.
  virtual std::unique_ptr<Ring> make_ring(unsigned depth);

  /// The operating system itself.
  static const std::shared_ptr<Sys>& real();
};

/// Throws the Error of a failed system call: "OPERATION PATH: text of errno", with a remedy where there is one.
[[noreturn]] void throw_sys_error(int sys_errno, std::string_view operation, std::string_view path);

/// The text of an errno.
std::string error_text(int sys_errno);

/// An open descriptor that closes itself.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  FileDescriptor(std::shared_ptr<Sys> sys, int fd) noexcept;
  FileDescriptor(FileDescriptor&& other) noexcept;
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  ~FileDescriptor();  ///< closes; an error is dropped

  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] bool is_open() const noexcept { return fd_ >= 0; }
  /// Closes and returns 0 or errno. The descriptor is gone either way.
  int close() noexcept;
  /// Hands the descriptor over without closing it.
  int release() noexcept;

 private:
  std::shared_ptr<Sys> sys_;
  int fd_ = -1;
};

/// open() with O_CLOEXEC. Not open and errno set on failure.
FileDescriptor open_file(const std::shared_ptr<Sys>& sys, const std::string& path, int flags);

/// Reads until `out` is full or the file ends; returns the bytes read. `path` is for messages.
std::size_t read_fully(Sys& sys, int fd, std::uint64_t offset, std::span<std::byte> out, std::string_view path);
/// Writes all of `data`. `path` is for messages.
void write_fully(Sys& sys, int fd, std::uint64_t offset, std::span<const std::byte> data, std::string_view path);

/// Runs a call that may be interrupted until it isn't.
template <typename Call>
auto retry_eintr(Call call) {
  decltype(call()) result;
  do {
    result = call();
  } while (result == -1 && errno == EINTR);
  return result;
}

}  // namespace torchsnapshot
