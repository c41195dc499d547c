// The root folder of an fs storage: paths, folders that are made and must be made durable, and files that
// are being made.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "storage/posix.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// A folder on a file system. Locations passed to it are normalized. Thread-safe.
class FsRoot {
 public:
  /// `root`: absolute or relative to the current folder; need not exist.
  FsRoot(std::string_view root, std::shared_ptr<Sys> sys);

  [[nodiscard]] const std::shared_ptr<Sys>& sys() const noexcept { return sys_; }
  [[nodiscard]] std::string url() const { return "fs://" + root_; }
  /// The path of an object, or of the root for "".
  [[nodiscard]] std::string path_of(std::string_view location) const;
  /// What messages call it: path_of with "fs://" in front.
  [[nodiscard]] std::string name_of(std::string_view location) const { return "fs://" + path_of(location); }

  /// Makes a file that must not exist, and the folders that are missing, the root included.
  FileDescriptor create_file(const std::string& location);
  /// Opens an object for reading. Throws Error(kNotFound) when there is none, or it is a folder.
  FileDescriptor open_file_for_read(const std::string& location, std::uint64_t& size) const;
  /// The size of an object. Throws as open_file_for_read.
  [[nodiscard]] std::uint64_t size_of(const std::string& location) const;
  /// Size and time of an object; nothing when there is none any more.
  [[nodiscard]] std::optional<ObjectInfo> info_of(std::string location) const;
  /// Every object below the folder `start` ("": the root); none when the folder isn't there. Symbolic links to folders
  /// are not entered.
  [[nodiscard]] std::vector<std::string> list_below(const std::string& start) const;

  /// Remembers for sync_folders() that the object's name is new, or gone.
  void note_new_name(const std::string& location);
  /// Makes the names of all files created or noted so far, and of their folders, durable.
  void sync_folders();
  /// Removes the folders that held these objects, and those above them, as far as they are empty. Never
  /// the root. Best effort.
  void remove_empty_folders(std::span<const std::string> locations) const noexcept;

  /// Throws the Error of a failed system call on an object; a root that is a file is told apart.
  [[noreturn]] void fail(int sys_errno, std::string_view operation, std::string_view location) const;

 private:
  void make_folder(const std::string& path, const std::string& location);
  void sync_all(const std::vector<std::string>& paths);
  /// Makes one folder's names durable. Returns the error of an fsync, after which there is no second chance; throws
  /// others.
  [[nodiscard]] std::optional<Error> sync_folder(const std::string& path) const;
  [[nodiscard]] bool root_is_no_folder() const noexcept;
  [[nodiscard]] std::uint64_t checked_size(const struct stat& info, std::string_view location) const;
  void list_folder(FileDescriptor fd, const std::string& folder, std::vector<std::string>& objects,
                   std::vector<std::string>& folders) const;

  std::string root_;
  std::shared_ptr<Sys> sys_;
  std::mutex mutex_;                 // guards unsynced_
  std::set<std::string> unsynced_;   // paths of folders with names that may not be durable yet
  std::mutex sync_mutex_;            // one sync at a time: when it returns, all of it is durable
  std::optional<Error> sync_error_;  // guarded by sync_mutex_
};

/// A file that is being made. Unless keep() is called, its destructor removes it, and the folders that
/// this leaves empty.
class NewFile {
 public:
  NewFile(std::shared_ptr<FsRoot> root, std::string location);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  /// Gives the file its size, with blocks on the disk where the file system can: a full disk shows here.
  void reserve(std::uint64_t size);
  /// Makes the content durable and closes. A failure is final: after it the kernel may have dropped the data.
  void sync_and_close();
  void keep() noexcept { kept_ = true; }

  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  [[nodiscard]] const std::string& location() const noexcept { return location_; }
  [[nodiscard]] FsRoot& root() const noexcept { return *root_; }

 private:
  [[nodiscard]] bool is_ours() const noexcept;

  std::shared_ptr<FsRoot> root_;
  std::string location_;
  FileDescriptor fd_;
  bool kept_ = false;
};

}  // namespace torchsnapshot
