#include "storage/fs_storage.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <limits>
#include <random>
#include <utility>

#include "storage/fs_object.h"
#include "storage/fs_root.h"
#include "storage/location.h"
#include "storage/object_checks.h"

namespace torchsnapshot {
namespace {

/// A name beside `location` that no other writer takes.
std::string temporary_beside(const std::string& location) {
  std::random_device random;
  char name[32];
  std::snprintf(name, sizeof(name), ".tmp-%08x%08x", random(), random());
  const auto folders = parent_folders(location);
  return folders.empty() ? name : std::string(folders.front()) + "/" + name;
}

/// The folder in which everything that starts with `prefix` lies; "" when that can't be told.
std::string folder_of_prefix(const std::string& prefix) {
  const auto slash = prefix.rfind('/');
  if (slash == std::string::npos || slash == 0) return "";
  const std::string folder = prefix.substr(0, slash);
  try {
    return normalize_location(folder) == folder ? folder : "";
  } catch (const Error&) {
    return "";  // "..": no object's location begins like this
  }
}

class FsStorage final : public Storage {
 public:
  FsStorage(std::shared_ptr<FsRoot> root, const FsTuning& tuning)
      : root_(std::move(root)), ladder_(std::make_shared<FsLadder>(root_->sys(), tuning, root_->url())) {}

  [[nodiscard]] std::string url() const override { return root_->url(); }
  [[nodiscard]] std::string io_path() const override { return ladder_->describe(); }
  std::vector<std::string> take_notices() override { return ladder_->take_notices(); }

  std::unique_ptr<ObjectWriter> create(const std::string& location, std::uint64_t size, std::stop_token stop) override {
    const std::string normal = normalize_location(location);
    check_stop(stop, "create", root_->name_of(normal));
    if (size > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())) {
      throw Error(ErrorCode::kInvalidArgument,
                  "create " + root_->name_of(normal) + ": no file can have " + std::to_string(size) + " bytes");
    }
    return make_fs_writer(std::make_unique<NewFile>(root_, normal), size, ladder_, std::move(stop));
  }

  std::unique_ptr<ObjectReader> open(const std::string& location, std::stop_token stop) override {
    const std::string normal = normalize_location(location);
    check_stop(stop, "open", root_->name_of(normal));
    std::uint64_t size = 0;
    FileDescriptor fd = root_->open_file_for_read(normal, size);
    return make_fs_reader(root_, normal, std::move(fd), size, ladder_, std::move(stop));
  }

  std::string read_all(const std::string& location, std::uint64_t limit, std::stop_token stop) override {
    const std::string normal = normalize_location(location);
    const std::string name = root_->name_of(normal);
    check_stop(stop, "open", name);
    std::uint64_t size = 0;
    FileDescriptor fd = root_->open_file_for_read(normal, size);
    check_limit(size, limit, name);
    std::string content(size, '\0');
    make_fs_reader(root_, normal, std::move(fd), size, ladder_, std::move(stop))
        ->read(0, std::as_writable_bytes(std::span(content)));
    return content;
  }

  std::vector<std::optional<std::uint64_t>> sizes(std::span<const std::string> locations,
                                                  std::stop_token stop) override {
    std::vector<std::optional<std::uint64_t>> sizes;
    sizes.reserve(locations.size());
    for (const std::string& location : locations) {
      const std::string normal = normalize_location(location);
      check_stop(stop, "stat", root_->name_of(normal));
      sizes.emplace_back(root_->size_of(normal));
    }
    return sizes;
  }

  void sync() override { root_->sync_folders(); }

  // 1. Write a temporary file beside the object and make it durable. 2. Rename it: a reader sees the old or the new
  // object, never a part. 3. Make the new name durable.
  void publish(const std::string& location, std::string_view content) override {
    const std::string normal = normalize_location(location);
    NewFile file(root_, temporary_beside(normal));
    write_fully(*root_->sys(), file.fd(), 0, std::as_bytes(std::span(content)), root_->name_of(normal));
    file.sync_and_close();
    const std::string from = root_->path_of(file.location());
    if (root_->sys()->rename(from.c_str(), root_->path_of(normal).c_str()) != 0) root_->fail(errno, "publish", normal);
    file.keep();
    root_->note_new_name(normal);
    root_->sync_folders();
  }

  std::vector<std::string> list(const std::string& prefix) override {
    std::vector<std::string> objects = root_->list_below(folder_of_prefix(prefix));
    std::erase_if(objects, [&](const std::string& location) { return !location.starts_with(prefix); });
    return objects;
  }

  std::vector<ObjectInfo> list_objects(const std::string& prefix) override {
    std::vector<ObjectInfo> objects;
    for (std::string& location : list(prefix)) {
      if (auto info = root_->info_of(std::move(location))) objects.push_back(std::move(*info));
    }
    return objects;
  }

  // Goes on after a failure, and throws the first one at the end.
  void remove(std::span<const std::string> locations) override {
    std::vector<std::string> normal;
    normal.reserve(locations.size());
    for (const std::string& location : locations) normal.push_back(normalize_location(location));
    std::optional<Error> first;
    for (const std::string& location : normal) {
      if (root_->sys()->unlink(root_->path_of(location).c_str()) == 0) {
        root_->note_new_name(location);
        continue;
      }
      const int error = errno;
      // ENOTDIR and EISDIR: there is no object of that name either.
      if (error == ENOENT || error == ENOTDIR || error == EISDIR || first) continue;
      try {
        root_->fail(error, "remove", location);
      } catch (const Error& failure) {
        first = failure;
      }
    }
    root_->remove_empty_folders(normal);
    if (first) throw Error(*first);
  }

 private:
  std::shared_ptr<FsRoot> root_;
  std::shared_ptr<FsLadder> ladder_;
};

}  // namespace

std::shared_ptr<Storage> make_fs_storage(const std::string& root, std::shared_ptr<Sys> sys, const FsTuning& tuning) {
  return std::make_shared<FsStorage>(std::make_shared<FsRoot>(root, std::move(sys)), tuning);
}

std::shared_ptr<Storage> open_fs_storage(const std::string& root, const StorageOptions& options) {
  FsTuning tuning;
  for (const auto& [key, value] : options) {
    if (key != "io") {
      throw Error(ErrorCode::kInvalidArgument, "unknown storage option '" + key + "': the file system has only 'io'");
    }
    tuning.mode = parse_io_mode(value);
  }
  return make_fs_storage(root, Sys::real(), tuning);
}

}  // namespace torchsnapshot
