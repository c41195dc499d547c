#include "storage/fs_root.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <exception>
#include <filesystem>
#include <functional>
#include <system_error>
#include <utility>

#include "exec/task_group.h"
#include "storage/location.h"

namespace torchsnapshot {
namespace {

// Between making a folder and the file in it, another thread's remove() may take the empty folder away.
constexpr int kCreateTries = 100;
// Folders that are synced at once.
constexpr std::size_t kSyncThreads = 8;

std::string parent_of(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == 0 ? "/" : path.substr(0, slash);
}

/// Absolute, without "." and repeated or trailing '/'. ".." stays: behind a symbolic link it isn't the
/// folder before it.
std::string absolute_path(std::string_view path) {
  std::string all;
  if (path.front() != '/') {
    std::error_code error;
    all = std::filesystem::current_path(error).native();
    if (error) throw_sys_error(error.value(), "find the current folder for", path);
  }
  all.append("/").append(path);
  std::string clean;
  for (std::size_t begin = 0; begin < all.size();) {
    const std::size_t end = std::min(all.find('/', begin), all.size());
    const std::string_view component = std::string_view(all).substr(begin, end - begin);
    begin = end + 1;
    if (!component.empty() && component != ".") clean.append("/").append(component);
  }
  return clean.empty() ? "/" : clean;
}

enum class Kind { kObject, kFolder, kOther, kUnknown };

/// What an item of a folder is; kUnknown and errno when it can't be told. A symbolic link counts as the regular
/// file it leads to, and never as a folder.
Kind kind_of(Sys& sys, int dir_fd, const dirent& item) {
  if (item.d_type == DT_REG) return Kind::kObject;
  if (item.d_type == DT_DIR) return Kind::kFolder;
  if (item.d_type != DT_LNK && item.d_type != DT_UNKNOWN) return Kind::kOther;
  struct stat info {};
  if (item.d_type == DT_UNKNOWN) {  // some file systems don't tell
    if (sys.fstatat(dir_fd, item.d_name, &info, AT_SYMLINK_NOFOLLOW) != 0) {
      return errno == ENOENT ? Kind::kOther : Kind::kUnknown;  // ENOENT: removed meanwhile
    }
    if (S_ISREG(info.st_mode)) return Kind::kObject;
    if (S_ISDIR(info.st_mode)) return Kind::kFolder;
    if (!S_ISLNK(info.st_mode)) return Kind::kOther;
  }
  const bool leads_somewhere = sys.fstatat(dir_fd, item.d_name, &info, 0) == 0;
  return leads_somewhere && S_ISREG(info.st_mode) ? Kind::kObject : Kind::kOther;
}

/// A DIR that closes itself.
class OpenFolder {
 public:
  OpenFolder(Sys& sys, DIR* dir) noexcept : sys_(sys), dir_(dir) {}
  ~OpenFolder() {
    if (dir_ != nullptr) sys_.closedir(dir_);
  }
  OpenFolder(const OpenFolder&) = delete;
  OpenFolder& operator=(const OpenFolder&) = delete;
  [[nodiscard]] DIR* get() const noexcept { return dir_; }

 private:
  Sys& sys_;
  DIR* dir_;
};

}  // namespace

FsRoot::FsRoot(std::string_view root, std::shared_ptr<Sys> sys) : sys_(std::move(sys)) {
  if (root.empty() || root.find('\0') != std::string_view::npos) {
    throw Error(ErrorCode::kInvalidArgument, "the path of a storage folder is empty or has a NUL character in it");
  }
  root_ = absolute_path(root);
}

std::string FsRoot::path_of(std::string_view location) const {
  if (location.empty()) return root_;
  std::string path = root_;
  if (path.back() != '/') path += '/';
  path += location;
  return path;
}

void FsRoot::fail(int sys_errno, std::string_view operation, std::string_view location) const {
  if (sys_errno == ENOTDIR && root_is_no_folder()) {
    throw Error(ErrorCode::kNotADirectory,
                std::string(operation) + " " + name_of(location) + ": " + root_ +
                    " is a file, not a folder; give the path of a folder",
                sys_errno);
  }
  throw_sys_error(sys_errno, operation, name_of(location));
}

bool FsRoot::root_is_no_folder() const noexcept {
  struct stat info {};
  return sys_->stat(root_.c_str(), &info) == 0 && !S_ISDIR(info.st_mode);
}

FileDescriptor FsRoot::create_file(const std::string& location) {
  const std::string path = path_of(location);
  for (int tries = 1;; ++tries) {
    FileDescriptor fd = open_file(sys_, path, O_WRONLY | O_CREAT | O_EXCL);
    if (fd.is_open()) {
      try {
        note_new_name(location);
      } catch (...) {
        sys_->unlink(path.c_str());
        throw;
      }
      return fd;
    }
    if (errno != ENOENT || tries == kCreateTries) fail(errno, "create", location);
    make_folder(parent_of(path), location);
  }
}

void FsRoot::make_folder(const std::string& path, const std::string& location) {
  constexpr mode_t kAnyone = 0777;  // less the umask
  for (int tries = 0; tries < 2; ++tries) {
    if (sys_->mkdir(path.c_str(), kAnyone) == 0) {
      const std::lock_guard lock(mutex_);
      unsynced_.insert(parent_of(path));
      return;
    }
    if (errno == EEXIST) return;
    if (errno != ENOENT || path == "/") fail(errno, "make the folder of", location);
    if (tries == 0) make_folder(parent_of(path), location);
  }
  // Taken away again meanwhile: the caller tries once more.
}

void FsRoot::note_new_name(const std::string& location) {
  // All folders up to the root, not only new ones: one may be left from a take that crashed before it
  // synced.
  const std::lock_guard lock(mutex_);
  for (const std::string_view folder : parent_folders(location)) {
    if (!unsynced_.insert(path_of(folder)).second) return;  // then those above are in it too
  }
  unsynced_.insert(root_);
}

FileDescriptor FsRoot::open_file_for_read(const std::string& location, std::uint64_t& size) const {
  // O_NONBLOCK: a FIFO in the way must not hang us; it has no effect on a regular file.
  FileDescriptor fd = open_file(sys_, path_of(location), O_RDONLY | O_NONBLOCK);
  if (!fd.is_open()) {
    const int error = errno;
    // "a/b" where "a" is an object: there is no such object.
    fail(error == ENOTDIR && !root_is_no_folder() ? ENOENT : error, "open", location);
  }
  struct stat info {};
  if (sys_->fstat(fd.get(), &info) != 0) fail(errno, "stat", location);
  size = checked_size(info, location);
  return fd;
}

std::uint64_t FsRoot::size_of(const std::string& location) const {
  struct stat info {};
  if (sys_->stat(path_of(location).c_str(), &info) != 0) {
    const int error = errno;
    fail(error == ENOTDIR && !root_is_no_folder() ? ENOENT : error, "stat", location);
  }
  return checked_size(info, location);
}

std::optional<ObjectInfo> FsRoot::info_of(std::string location) const {
  struct stat info {};
  if (sys_->stat(path_of(location).c_str(), &info) != 0) {
    const int error = errno;
    if (error == ENOENT || (error == ENOTDIR && !root_is_no_folder())) return std::nullopt;
    fail(error, "stat", location);
  }
  if (!S_ISREG(info.st_mode)) return std::nullopt;
  const auto since_epoch = std::chrono::seconds(info.st_mtim.tv_sec) + std::chrono::nanoseconds(info.st_mtim.tv_nsec);
  return ObjectInfo{std::move(location), static_cast<std::uint64_t>(info.st_size),
                    std::chrono::system_clock::time_point(
                        std::chrono::duration_cast<std::chrono::system_clock::duration>(since_epoch))};
}

std::uint64_t FsRoot::checked_size(const struct stat& info, std::string_view location) const {
  if (S_ISREG(info.st_mode)) return static_cast<std::uint64_t>(info.st_size);
  if (S_ISDIR(info.st_mode)) {
    throw Error(ErrorCode::kNotFound, "open " + name_of(location) + ": this is a folder, not an object");
  }
  throw Error(ErrorCode::kUnsupported, "open " + name_of(location) + ": neither a regular file nor a folder");
}

std::vector<std::string> FsRoot::list_below(const std::string& start) const {
  std::vector<std::string> objects;
  std::vector<std::string> folders{start};
  while (!folders.empty()) {
    const std::string folder = std::move(folders.back());
    folders.pop_back();
    // The root itself may be a symbolic link; what lies below it is entered only if it is a folder in its own right.
    const int no_links = folder.empty() ? 0 : O_NOFOLLOW;
    FileDescriptor fd = open_file(sys_, path_of(folder), O_RDONLY | O_DIRECTORY | no_links);
    if (fd.is_open()) {
      list_folder(std::move(fd), folder, objects, folders);
      continue;
    }
    const int error = errno;
    const bool gone = error == ENOENT || error == ELOOP || (error == ENOTDIR && !root_is_no_folder());
    if (!gone) fail(error, "list", folder);
  }
  std::sort(objects.begin(), objects.end());
  return objects;
}

void FsRoot::list_folder(FileDescriptor fd, const std::string& folder, std::vector<std::string>& objects,
                         std::vector<std::string>& folders) const {
  const OpenFolder dir(*sys_, sys_->fdopendir(fd.get()));
  if (dir.get() == nullptr) fail(errno, "list", folder);
  const int dir_fd = fd.release();  // closedir closes it
  while (true) {
    errno = 0;
    const dirent* item = sys_->readdir(dir.get());
    if (item == nullptr) {
      if (errno != 0) fail(errno, "list", folder);
      return;
    }
    const std::string_view name = item->d_name;
    if (name == "." || name == "..") continue;
    std::string location = folder.empty() ? std::string(name) : folder + "/" + std::string(name);
    const Kind kind = kind_of(*sys_, dir_fd, *item);
    if (kind == Kind::kUnknown) fail(errno, "stat", location);
    if (kind == Kind::kFolder) {
      folders.push_back(std::move(location));
    } else if (kind == Kind::kObject) {
      objects.push_back(std::move(location));
    }
  }
}

void FsRoot::sync_folders() {
  const std::lock_guard sync_lock(sync_mutex_);
  // Once an fsync has failed, a later one may succeed without the data being there.
  if (sync_error_) throw Error(*sync_error_);
  while (true) {
    std::set<std::string> folders;
    {
      const std::lock_guard lock(mutex_);
      // Taken out before the sync: a name that appears meanwhile puts its folder back.
      folders.swap(unsynced_);
    }
    if (folders.empty()) return;
    try {
      sync_all({folders.begin(), folders.end()});
    } catch (...) {
      const std::lock_guard lock(mutex_);
      unsynced_.merge(folders);
      throw;
    }
  }
}

// Several at once: a file system commits them together, and a third of the time is enough (docs/performance.md).
void FsRoot::sync_all(const std::vector<std::string>& paths) {
  std::vector<std::optional<Error>> lost(paths.size());
  std::exception_ptr other;
  try {
    if (paths.size() == 1) {
      lost[0] = sync_folder(paths[0]);
    } else {
      ThreadPool pool(std::min(paths.size(), kSyncThreads));
      TaskGroup group(pool, {});
      for (std::size_t i = 0; i < paths.size(); ++i) {
        group.run([&, i] { lost[i] = sync_folder(paths[i]); });
      }
      group.wait();
    }
  } catch (...) {
    other = std::current_exception();
  }
  for (const std::optional<Error>& error : lost) {
    if (!error) continue;
    sync_error_ = error;
    throw Error(*error);
  }
  if (other) std::rethrow_exception(other);
}

std::optional<Error> FsRoot::sync_folder(const std::string& path) const {
  const FileDescriptor fd = open_file(sys_, path, O_RDONLY | O_DIRECTORY);
  if (!fd.is_open()) {
    if (errno == ENOENT) return std::nullopt;  // removed again
    throw_sys_error(errno, "open the folder", "fs://" + path);
  }
  if (retry_eintr([&] { return sys_->fsync(fd.get()); }) == 0) return std::nullopt;
  // A file system that can't sync folders has no more to give.
  if (errno == EINVAL || errno == EOPNOTSUPP) return std::nullopt;
  try {
    throw_sys_error(errno, "fsync of the folder", "fs://" + path);
  } catch (const Error& error) {
    return error;
  }
}

void FsRoot::remove_empty_folders(std::span<const std::string> locations) const noexcept {
  try {
    // In reverse order every folder comes before the one it is in.
    std::set<std::string_view, std::greater<>> folders;
    for (const std::string& location : locations) {
      for (const std::string_view folder : parent_folders(location)) folders.insert(folder);
    }
    for (const std::string_view folder : folders) static_cast<void>(sys_->rmdir(path_of(folder).c_str()));
  } catch (const std::exception&) {  // no memory: the folders stay
    return;
  }
}

NewFile::NewFile(std::shared_ptr<FsRoot> root, std::string location)
    : root_(std::move(root)), location_(std::move(location)), fd_(root_->create_file(location_)) {}

NewFile::~NewFile() {
  if (kept_) return;
  try {
    if (is_ours()) {
      static_cast<void>(root_->sys()->unlink(root_->path_of(location_).c_str()));
      root_->remove_empty_folders(std::span(&location_, 1));
    }
  } catch (const std::exception&) {  // no memory: the file stays
    return;
  }
}

bool NewFile::is_ours() const noexcept {
  if (!fd_.is_open()) return true;  // closed a moment ago
  // Somebody may have removed our file and made another of that name.
  struct stat mine {};
  struct stat there {};
  Sys& sys = *root_->sys();
  const bool known = sys.fstat(fd_.get(), &mine) == 0 && sys.stat(root_->path_of(location_).c_str(), &there) == 0;
  return !known || (mine.st_dev == there.st_dev && mine.st_ino == there.st_ino);
}

void NewFile::reserve(std::uint64_t size) {
  if (size == 0) return;
  Sys& sys = *root_->sys();
  const auto length = static_cast<off_t>(size);
  if (retry_eintr([&] { return sys.fallocate(fd(), length); }) == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS) root_->fail(errno, "reserve space for", location_);
  if (retry_eintr([&] { return sys.ftruncate(fd(), length); }) != 0) root_->fail(errno, "set the size of", location_);
}

void NewFile::sync_and_close() {
  if (retry_eintr([&] { return root_->sys()->fdatasync(fd()); }) != 0) root_->fail(errno, "fdatasync", location_);
  if (const int error = fd_.close(); error != 0) root_->fail(error, "close", location_);
}

}  // namespace torchsnapshot
