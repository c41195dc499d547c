#include "storage/fs_object.h"

#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "storage/fs_buffered.h"
#include "storage/fs_direct.h"
#include "storage/fs_view.h"
#include "storage/object_checks.h"

namespace torchsnapshot {
namespace {

bool is_always_buffered(const FsLadder& ladder, std::uint64_t size) noexcept {
  return size < ladder.tuning().least_object || ladder.tuning().mode == IoMode::kBuffered;
}

class FsWriter final : public ObjectWriter {
 public:
  FsWriter(std::unique_ptr<NewFile> file, std::uint64_t size, std::shared_ptr<FsLadder> ladder, std::stop_token stop)
      : file_(std::move(file)),
        object_{file_->root().sys(), file_->fd(), file_->root().name_of(file_->location()), std::move(stop)},
        progress_(size) {
    file_->reserve(size);
    if (is_always_buffered(*ladder, size)) return;
    const std::string path = file_->root().path_of(file_->location());
    auto device = ladder->device_of(object_.fd, path, /*is_new=*/true);
    if (device->rung == Rung::kBuffered) return;
    FileDescriptor direct = ladder->open_direct(*device, object_.fd, path, /*for_write=*/true);
    if (direct.is_open()) direct_.emplace(std::move(ladder), std::move(device), std::move(direct));
  }

  void write(std::uint64_t offset, std::span<const std::byte> data) override {
    progress_.check_block(offset, data.size(), object_.name);
    check_stop(object_.stop, "write", object_.name);
    if (direct_) {
      direct_->write(object_, offset, data);
    } else {
      write_buffered(object_, offset, data);
    }
    progress_.add(data.size());
  }

  void finish() override {
    progress_.check_complete(object_.name);
    check_stop(object_.stop, "finish", object_.name);
    file_
        ->sync_and_close();  // of what went directly too: it makes the disk write its own cache, and the file's extents
    direct_.reset();
    file_->keep();
  }

 private:
  std::unique_ptr<NewFile> file_;
  OpenObject object_;
  WriteProgress progress_;
  std::optional<DirectFile> direct_;
};

class FsReader final : public ObjectReader {
 public:
  FsReader(const FsRoot& root, const std::string& location, FileDescriptor fd, std::uint64_t size,
           std::shared_ptr<FsLadder> ladder, std::stop_token stop)
      : fd_(std::move(fd)),
        object_{root.sys(), fd_.get(), root.name_of(location), std::move(stop)},
        path_(root.path_of(location)),
        size_(size),
        ladder_(std::move(ladder)),
        is_buffered_(is_always_buffered(*ladder_, size)) {}

  // A large block is looked up in the page cache, window by window. What is mostly there is copied from there; the
  // other windows are read directly.
  void read(std::uint64_t offset, std::span<std::byte> out) override {
    check_read(offset, out.size(), size_, object_.name);
    check_stop(object_.stop, "read", object_.name);
    DirectFile* direct = out.size() < ladder_->tuning().least_block ? nullptr : direct_file();
    while (direct != nullptr && !out.empty()) {
      std::size_t run = 0;  // bytes of the windows from here on that go the same way
      bool is_cached = false;
      while (run < out.size()) {
        const std::size_t window = std::min(ladder_->tuning().cache_window, out.size() - run);
        const bool here = cached_bytes(object_, offset + run, window, is_ours_) >= window / 2;
        if (run > 0 && here != is_cached) break;
        is_cached = here;
        run += window;
      }
      if (is_cached) {
        read_buffered(object_, offset, out.first(run));
      } else {
        direct->read(object_, offset, out.first(run));
      }
      offset += run;
      out = out.subspan(run);
    }
    read_buffered(object_, offset, out);
  }

  std::optional<SharedBytes> view(std::uint64_t offset, std::size_t size) override {
    if (size < ladder_->tuning().least_view) return std::nullopt;
    check_read(offset, size, size_, object_.name);
    check_stop(object_.stop, "read", object_.name);
    MappedFile* const mapped = mapped_file();
    if (mapped == nullptr) return std::nullopt;
    return mapped->view(object_, offset, size, is_ours_);
  }

 private:
  /// What there is to know before the page cache is asked. Once, with the mutex held.
  void look() {
    if (was_looked_at_) return;
    struct stat info {};
    if (object_.sys->fstat(object_.fd, &info) != 0) throw_sys_error(errno, "stat", object_.name);
    is_ours_ = ::geteuid() == 0 || info.st_uid == ::geteuid();
    if (object_.sys->is_local(object_.fd, &is_local_) != 0) is_local_ = false;
    was_looked_at_ = true;
  }

  /// Mapped by the first view; null when nothing of this object can be viewed.
  MappedFile* mapped_file() {
    const std::lock_guard lock(mutex_);
    look();
    if (is_local_ && !std::exchange(was_mapped_, true)) mapped_ = MappedFile::make(object_, size_);
    return mapped_.get();
  }

  /// Opened by the first large read; null when there is no direct I/O for this object.
  DirectFile* direct_file() {
    if (is_buffered_) return nullptr;
    const std::lock_guard lock(mutex_);
    if (!was_tried_) {
      auto device = ladder_->device_of(object_.fd, path_, /*is_new=*/false);
      if (device->rung != Rung::kBuffered) {
        look();
        FileDescriptor direct = ladder_->open_direct(*device, object_.fd, path_, /*for_write=*/false);
        if (direct.is_open()) direct_.emplace(ladder_, std::move(device), std::move(direct));
      }
      was_tried_ = true;
    }
    return direct_ ? &*direct_ : nullptr;
  }

  FileDescriptor fd_;
  OpenObject object_;
  std::string path_;
  std::uint64_t size_;
  std::shared_ptr<FsLadder> ladder_;
  const bool is_buffered_;
  std::mutex mutex_;  // guards what follows while it is being made
  bool was_looked_at_ = false;
  bool is_ours_ = false;
  bool is_local_ = false;
  bool was_mapped_ = false;
  std::shared_ptr<MappedFile> mapped_;
  bool was_tried_ = false;
  std::optional<DirectFile> direct_;
};

}  // namespace

std::unique_ptr<ObjectWriter> make_fs_writer(std::unique_ptr<NewFile> file, std::uint64_t size,
                                             std::shared_ptr<FsLadder> ladder, std::stop_token stop) {
  return std::make_unique<FsWriter>(std::move(file), size, std::move(ladder), std::move(stop));
}

std::unique_ptr<ObjectReader> make_fs_reader(const std::shared_ptr<FsRoot>& root, const std::string& location,
                                             FileDescriptor fd, std::uint64_t size, std::shared_ptr<FsLadder> ladder,
                                             std::stop_token stop) {
  return std::make_unique<FsReader>(*root, location, std::move(fd), size, std::move(ladder), std::move(stop));
}

}  // namespace torchsnapshot
