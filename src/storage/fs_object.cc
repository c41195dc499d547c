#include "storage/fs_object.h"

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

class BufferedWriter final : public ObjectWriter {
 public:
  BufferedWriter(std::unique_ptr<NewFile> file, std::uint64_t size, std::stop_token stop)
      : file_(std::move(file)),
        name_(file_->root().name_of(file_->location())),
        progress_(size),
        stop_(std::move(stop)) {}

  void write(std::uint64_t offset, std::span<const std::byte> data) override {
    progress_.check_block(offset, data.size(), name_);
    const bool drop_behind = data.size() >= kDropBehindBytes;
    Range behind;  // written, its write-back begun
    Sys& sys = *file_->root().sys();
    while (!data.empty()) {
      check_stop(stop_, "write", name_);
      const auto slice = data.first(std::min(data.size(), kSliceBytes));
      write_fully(sys, file_->fd(), offset, slice, name_);
      const Range written{static_cast<off_t>(offset), static_cast<off_t>(slice.size())};
      // Only a hint, so that the disk is busy while more is staged; a failure comes back from the wait or fdatasync.
      sys.start_writeback(file_->fd(), written.offset, written.size);
      if (drop_behind) drop(std::exchange(behind, written));
      progress_.add(slice.size());
      offset += slice.size();
      data = data.subspan(slice.size());
    }
    drop(behind);
  }

  void finish() override {
    progress_.check_complete(name_);
    check_stop(stop_, "finish", name_);
    file_->sync_and_close();
    file_->keep();
  }

 private:
  struct Range {
    off_t offset = 0;
    off_t size = 0;
  };

  /// Waits until the range is on the disk, and lets its pages go.
  void drop(Range range) {
    if (range.size == 0) return;
    Sys& sys = *file_->root().sys();
    int error = 0;
    do {
      error = sys.wait_writeback(file_->fd(), range.offset, range.size) == 0 ? 0 : errno;
    } while (error == EINTR);
    if (error == ENOSYS || error == EINVAL || error == ESPIPE || error == EOPNOTSUPP)
      return;  // not on this file system
    // The kernel reports a failed write-back once: fdatasync would not tell of this one any more.
    if (error != 0) throw_sys_error(error, "sync_file_range", name_);
    sys.drop_cache(file_->fd(), range.offset, range.size);  // only a hint
  }

  std::unique_ptr<NewFile> file_;
  std::string name_;
  WriteProgress progress_;
  std::stop_token stop_;
};

class BufferedReader final : public ObjectReader {
 public:
  BufferedReader(std::shared_ptr<Sys> sys, FileDescriptor fd, std::uint64_t size, std::string name,
                 std::stop_token stop)
      : sys_(std::move(sys)), fd_(std::move(fd)), size_(size), name_(std::move(name)), stop_(std::move(stop)) {}

  void read(std::uint64_t offset, std::span<std::byte> out) override {
    check_read(offset, out.size(), size_, name_);
    while (!out.empty()) {
      check_stop(stop_, "read", name_);
      const auto slice = out.first(std::min(out.size(), kSliceBytes));
      const std::size_t got = read_fully(*sys_, fd_.get(), offset, slice, name_);
      // A file that shrank since it was opened ends here.
      if (got < slice.size()) check_read(offset, out.size(), offset + got, name_);
      offset += got;
      out = out.subspan(got);
    }
  }

 private:
  std::shared_ptr<Sys> sys_;
  FileDescriptor fd_;
  std::uint64_t size_;
  std::string name_;
  std::stop_token stop_;
};

}  // namespace

std::unique_ptr<ObjectWriter> make_buffered_writer(std::unique_ptr<NewFile> file, std::uint64_t size,
                                                   std::stop_token stop) {
  return std::make_unique<BufferedWriter>(std::move(file), size, std::move(stop));
}

std::unique_ptr<ObjectReader> make_buffered_reader(std::shared_ptr<Sys> sys, FileDescriptor fd, std::uint64_t size,
                                                   std::string name, std::stop_token stop) {
  return std::make_unique<BufferedReader>(std::move(sys), std::move(fd), size, std::move(name), std::move(stop));
}

}  // namespace torchsnapshot
