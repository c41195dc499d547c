#include "storage/fs_buffered.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "storage/object_checks.h"

namespace torchsnapshot {
namespace {

// A stop is noticed, and write-back begins, at least this often.
constexpr std::size_t kSliceBytes = 8 << 20;
// Blocks of this size leave the page cache as soon as they are on the disk, so that a large take goes through few
// pages again and again instead of touching new ones (four times as fast on a virtual machine, docs/performance.md)
// and evicts nobody else's. Smaller ones are not worth the wait.
constexpr std::size_t kDropBehindBytes = 1 << 20;

struct Range {
  off_t offset = 0;
  off_t size = 0;
};

/// Waits until the range is on the disk, and lets its pages go.
void drop(const OpenObject& object, Range range) {
  if (range.size == 0) return;
  int error = 0;
  do {
    error = object.sys->wait_writeback(object.fd, range.offset, range.size) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error == ENOSYS || error == EINVAL || error == ESPIPE || error == EOPNOTSUPP) return;  // not on this file system
  // The kernel reports a failed write-back once: fdatasync would not tell of this one any more.
  if (error != 0) throw_sys_error(error, "sync_file_range", object.name);
  object.sys->drop_cache(object.fd, range.offset, range.size);  // only a hint
}

/// A file that shrank since it was opened: `end` is as far as this read came, which may have begun past the end.
void throw_short(const OpenObject& object, std::uint64_t offset, std::size_t size, std::uint64_t end) {
  struct stat info {};
  if (object.sys->fstat(object.fd, &info) == 0) end = std::min(end, static_cast<std::uint64_t>(info.st_size));
  check_read(offset, size, end, object.name);
}

}  // namespace

void write_buffered(const OpenObject& object, std::uint64_t offset, std::span<const std::byte> data) {
  const bool drop_behind = data.size() >= kDropBehindBytes;
  Range behind;  // written, its write-back begun
  while (!data.empty()) {
    check_stop(object.stop, "write", object.name);
    const auto slice = data.first(std::min(data.size(), kSliceBytes));
    write_fully(*object.sys, object.fd, offset, slice, object.name);
    const Range written{static_cast<off_t>(offset), static_cast<off_t>(slice.size())};
    // Only a hint, so that the disk is busy while more is staged; a failure comes back from the wait or fdatasync.
    object.sys->start_writeback(object.fd, written.offset, written.size);
    if (drop_behind) drop(object, std::exchange(behind, written));
    offset += slice.size();
    data = data.subspan(slice.size());
  }
  drop(object, behind);
}

void read_buffered(const OpenObject& object, std::uint64_t offset, std::span<std::byte> out) {
  while (!out.empty()) {
    check_stop(object.stop, "read", object.name);
    const auto slice = out.first(std::min(out.size(), kSliceBytes));
    const std::size_t got = read_fully(*object.sys, object.fd, offset, slice, object.name);
    if (got < slice.size()) throw_short(object, offset, out.size(), offset + got);
    offset += got;
    out = out.subspan(got);
  }
}

std::uint64_t cached_bytes(const OpenObject& object, std::uint64_t offset, std::size_t size, bool is_ours) {
  std::uint64_t cached = 0;
  if (object.sys->cachestat(object.fd, static_cast<off_t>(offset), size, &cached) == 0) return cached;
  // A kernel before 6.5. Its answer on other people's files is no answer.
  if (!is_ours || object.sys->mincore(object.fd, static_cast<off_t>(offset), size, &cached) != 0) return 0;
  return cached;
}

}  // namespace torchsnapshot
