// The fs backend on system calls that misbehave: interrupted and short ones, ones that fail, and a record of
// what was made durable in which order.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <map>
#include <mutex>
#include <set>

#include "storage/conformance.h"
#include "storage/fs_storage.h"
#include "storage/testing.h"
#include "storage/testing_sys.h"

namespace torchsnapshot {
namespace {

namespace fs = std::filesystem;
using Strings = std::vector<std::string>;

/// A bad day that is no failure: signals, short transfers, no fallocate, no types in folders.
class RoughSys final : public HookedSys {
 public:
  int before(const char* name) override {
    const std::string_view call = name;
    if (call == "fallocate") return EOPNOTSUPP;
    const bool may_be_interrupted = call == "open" || call == "pread" || call == "pwrite" || call == "ftruncate" ||
                                    call == "fsync" || call == "fdatasync" || call == "close";
    if (may_be_interrupted && ++calls_ % 3 == 0) return EINTR;
    return call == "fsync" && calls_ % 2 == 0 ? EINVAL : 0;  // a file system that can't sync folders
  }
  ssize_t pread(int fd, void* data, std::size_t size, off_t offset) override {
    return HookedSys::pread(fd, data, short_size(size), offset);
  }
  ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
    return HookedSys::pwrite(fd, data, short_size(size), offset);
  }
  dirent* readdir(DIR* dir) override {
    dirent* item = HookedSys::readdir(dir);
    if (item != nullptr) item->d_type = DT_UNKNOWN;
    return item;
  }

 private:
  std::size_t short_size(std::size_t size) { return calls_ % 2 == 0 ? size : std::max<std::size_t>(1, size / 3); }
  std::atomic<unsigned> calls_ = 0;
};

const ConformanceBackend kRough{"FsRough", [] {
                                  const auto folder = std::make_shared<TemporaryFolder>();
                                  const auto sys = std::make_shared<RoughSys>();
                                  return [folder, sys] {
                                    return make_fs_storage((folder->path() / "root").native(), sys);
                                  };
                                }};

INSTANTIATE_TEST_SUITE_P(FsRough, StorageConformance, testing::Values(kRough), backend_name);

/// Makes the call of one number fail, on a machine with direct I/O.
class FaultySys final : public PretendSys {
 public:
  FaultySys(int number, int errno_of_it, bool has_rings) : number_(number), errno_of_it_(errno_of_it) {
    error = [this, has_rings](std::string_view name) {
      if (name == "make_ring" && !has_rings) return EPERM;
      if (off_ || calls_++ != number_) return 0;
      failed_ = name;  // one thread gets here
      return errno_of_it_;
    };
  }
  void switch_off() { off_ = true; }
  [[nodiscard]] const std::string& failed() const { return failed_; }

 private:
  const int number_;
  const int errno_of_it_;
  std::atomic<int> calls_ = 0;
  bool off_ = false;
  std::string failed_;
};

/// All that a take, a restore and a prune ask of a storage.
// Large enough to be dropped from the page cache behind the write.
const std::string kLarge(1 << 20, 'y');

void use_everything(Storage& storage) {
  {
    const auto writer = storage.create("data/0/x", 10, {});
    writer->write(5, bytes_of("56789"));
    writer->write(0, bytes_of("01234"));
    writer->finish();
  }
  put(storage, "data/y", kLarge);
  storage.sync();
  storage.publish("meta", "new");
  EXPECT_EQ(storage.sizes(Strings{"data/0/x", "meta"}, {}).size(), 2U);
  EXPECT_EQ(get(storage, "meta"), "new");
  const auto reader = storage.open("data/0/x", {});
  std::string part(3, '\0');
  reader->read(4, std::as_writable_bytes(std::span(part)));
  EXPECT_EQ(part, "456");
  std::string large(kLarge.size(), '\0');
  storage.open("data/y", {})->read(0, std::as_writable_bytes(std::span(large)));
  EXPECT_TRUE(large == kLarge);
  EXPECT_EQ(storage.list(""), (Strings{"data/0/x", "data/y", "meta"}));
  storage.remove(Strings{"data/y"});
}

struct Way {
  std::string name;
  IoMode mode;
  bool has_rings;
  std::set<std::string> calls;  ///< that only this way makes

  friend void PrintTo(const Way& way, std::ostream* out) { *out << way.name; }
};

class EachWay : public testing::TestWithParam<Way> {};

const std::set<std::string> kDirectCalls{"is_in_memory", "statx_direct", "cachestat", "is_local"};

INSTANTIATE_TEST_SUITE_P(FsFaults, EachWay,
                         testing::Values(Way{"Buffered", IoMode::kBuffered, false, {"wait_writeback", "drop_cache"}},
                                         Way{"Direct", IoMode::kAuto, false, kDirectCalls},
                                         Way{"Uring", IoMode::kAuto, true, kDirectCalls}),
                         [](const auto& way) { return way.param.name; });

// Each system call fails once. Either that is reported, or it does not matter; and nothing half-made is left.
TEST_P(EachWay, EverySystemCallFailsOnce) {
  const auto& [name, mode, has_rings, calls_of_this_way] = GetParam();
  // What only cleans up, only gives a hint, or has another way.
  const std::set<std::string> harmless{"start_writeback", "drop_cache",   "rmdir",   "closedir",
                                       "close",           "cachestat",    "mincore", "make_ring",
                                       "statx_direct",    "is_in_memory", "is_local"};
  FsTuning tuning;
  tuning.mode = mode;
  tuning.ring.straight = 256 << 10;  // several pieces
  for (const auto& [error, code] : {std::pair(EIO, ErrorCode::kIo), std::pair(ENOSPC, ErrorCode::kNoSpace),
                                    std::pair(EACCES, ErrorCode::kPermissionDenied)}) {
    if (error == ENOSPC && mode != IoMode::kBuffered) continue;  // as EIO, and for the time it takes
    std::set<std::string> seen;
    for (int number = 0;; ++number) {
      const TemporaryFolder folder;
      const fs::path root = folder.path() / "deep" / "root";
      const int descriptors = open_descriptors();
      const auto sys = std::make_shared<FaultySys>(number, error, has_rings);
      const auto storage = make_fs_storage(root.native(), sys, tuning);
      bool thrown = false;
      try {
        use_everything(*storage);
      } catch (const Error& failure) {
        thrown = true;
        EXPECT_EQ(failure.code(), code) << sys->failed() << ": " << failure.what();
        EXPECT_EQ(failure.sys_errno(), error) << sys->failed() << ": " << failure.what();
        EXPECT_NE(std::string(failure.what()).find(folder.path().native()), std::string::npos) << failure.what();
      }
      EXPECT_EQ(open_descriptors(), descriptors) << "after a failed " << sys->failed();
      if (sys->failed().empty()) {
        EXPECT_FALSE(thrown);
        EXPECT_GT(number, 40);
        break;
      }
      seen.insert(sys->failed());
      // A file that may not be opened a second time for direct I/O is no failure either.
      const bool is_told = error == EACCES && sys->failed() == "open" && !storage->take_notices().empty();
      EXPECT_TRUE(thrown || is_told || harmless.contains(sys->failed())) << sys->failed() << " number " << number;
      sys->switch_off();
      for (const std::string& location : storage->list("")) {
        const std::string content = get(*storage, location);
        if (location == "data/0/x") {
          EXPECT_EQ(content, "0123456789");
        } else if (location == "data/y") {
          EXPECT_TRUE(content == kLarge);
        } else if (location == "meta") {
          EXPECT_EQ(content, "new");
        } else {
          ADD_FAILURE() << location << " is left after a failed " << sys->failed();
        }
      }
    }
    std::set<std::string> expected{"open",      "close",     "pread",   "pwrite",   "fallocate",      "fsync",
                                   "fdatasync", "fstat",     "stat",    "mkdir",    "rmdir",          "unlink",
                                   "rename",    "fdopendir", "readdir", "closedir", "start_writeback"};
    expected.insert(calls_of_this_way.begin(), calls_of_this_way.end());
    seen.erase("make_ring");
    EXPECT_EQ(seen, expected);
  }
}

/// Fails the first `count` calls of one name, and counts all of them.
class NamedFaults final : public HookedSys {
 public:
  NamedFaults(std::string name, int error, int count) : name_(std::move(name)), error_(error), left_(count) {}
  int before(const char* name) override {
    if (name != name_) return 0;
    ++calls_;
    return left_ > 0 && left_-- > 0 ? error_ : 0;
  }
  void fail_next(int count) { left_ = count; }
  [[nodiscard]] int calls() const { return calls_; }

 private:
  const std::string name_;
  const int error_;
  std::atomic<int> left_;
  std::atomic<int> calls_ = 0;
};

TEST(FsFaults, AFailedFdatasyncIsNotRepeated) {
  const TemporaryFolder folder;
  const auto sys = std::make_shared<NamedFaults>("fdatasync", EIO, 1);
  const auto storage = make_fs_storage(folder.path().native(), sys);
  {
    const auto writer = storage->create("a/x", 1, {});
    writer->write(0, bytes_of("x"));
    expect_error(ErrorCode::kIo, {"fdatasync", "a/x"}, [&] { writer->finish(); });
    expect_error(ErrorCode::kInvalidArgument, {"a/x"}, [&] { writer->finish(); });
  }
  EXPECT_EQ(sys->calls(), 1);
  EXPECT_FALSE(fs::exists(folder.path() / "a"));
}

TEST(FsFaults, AFailedFolderSyncStaysFailed) {
  const TemporaryFolder folder;
  const auto storage =
      make_fs_storage((folder.path() / "root").native(), std::make_shared<NamedFaults>("fsync", EIO, 1));
  put(*storage, "x", "1");
  for (int i = 0; i < 2; ++i) {
    expect_error(ErrorCode::kIo, {"fsync of the folder", folder.path().native()}, [&] { storage->sync(); });
  }
}

TEST(FsFaults, ManyFoldersOneOfThemLost) {
  const TemporaryFolder folder;
  const auto sys = std::make_shared<NamedFaults>("fsync", ENOSPC, 1);
  const auto storage = make_fs_storage(folder.path().native(), sys);
  for (int i = 0; i < 20; ++i) put(*storage, std::to_string(i) + "/x", "1");
  for (int i = 0; i < 2; ++i) {
    expect_error(ErrorCode::kNoSpace, {"fsync of the folder", folder.path().native()}, [&] { storage->sync(); });
  }
  EXPECT_GE(sys->calls(), 1);
  EXPECT_LE(sys->calls(), 21);
}

TEST(FsFaults, AFolderThatCannotBeOpenedMayBeSyncedLater) {
  const TemporaryFolder folder;
  const auto sys = std::make_shared<NamedFaults>("open", EMFILE, 0);
  const auto storage = make_fs_storage(folder.path().native(), sys);
  for (int i = 0; i < 20; ++i) put(*storage, std::to_string(i) + "/x", "1");
  sys->fail_next(3);
  expect_error(ErrorCode::kIo, {"open the folder"}, [&] { storage->sync(); });
  sys->fail_next(0);
  const int before = sys->calls();
  storage->sync();
  EXPECT_GE(sys->calls() - before, 21);  // those that had been synced once more too
}

TEST(FsFaults, AFailedCloseIsReported) {
  const TemporaryFolder folder;
  const auto storage = make_fs_storage(folder.path().native(), std::make_shared<NamedFaults>("close", EIO, 1));
  {
    const auto writer = storage->create("x", 0, {});
    expect_error(ErrorCode::kIo, {"close", "x"}, [&] { writer->finish(); });
  }
  EXPECT_FALSE(fs::exists(folder.path() / "x"));
}

TEST(FsFaults, WithoutFallocateTheFileStillHasItsSize) {
  const TemporaryFolder folder;
  const auto sys = std::make_shared<NamedFaults>("fallocate", EOPNOTSUPP, 100);
  const auto storage = make_fs_storage(folder.path().native(), sys);
  const auto writer = storage->create("x", 12345, {});
  EXPECT_EQ(fs::file_size(folder.path() / "x"), 12345U);
  EXPECT_EQ(sys->calls(), 1);
}

/// Notes which paths are opened and synced, and renames, in order.
class RecordingSys final : public Sys {
 public:
  int open(const char* path, int flags, mode_t mode) override {
    const int fd = Sys::open(path, flags, mode);
    const std::lock_guard lock(mutex_);
    if (fd >= 0) paths_[fd] = path;
    events.push_back("open " + std::string(path));
    return fd;
  }
  ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
    note("write", fd);
    return Sys::pwrite(fd, data, size, offset);
  }
  int fsync(int fd) override {
    note("fsync", fd);
    return Sys::fsync(fd);
  }
  int fdatasync(int fd) override {
    note("fdatasync", fd);
    return Sys::fdatasync(fd);
  }
  int rename(const char* from, const char* to) override {
    events.push_back("rename " + std::string(from) + " to " + to);
    return Sys::rename(from, to);
  }

  /// What followed `verb`, in order; and forgets all events.
  Strings take(const std::string& verb) {
    Strings found;
    for (const std::string& event : events) {
      if (event.starts_with(verb + " ")) found.push_back(event.substr(verb.size() + 1));
    }
    events.clear();
    return found;
  }
  Strings events;

 private:
  void note(const std::string& verb, int fd) {
    const std::lock_guard lock(mutex_);
    events.push_back(verb + " " + paths_[fd]);
  }

  std::mutex mutex_;  // folders are synced by several threads
  std::map<int, std::string> paths_;
};

class FsDurability : public testing::Test {
 protected:
  [[nodiscard]] std::string path(const std::string& name) const { return (folder_.path() / name).native(); }
  Strings synced_folders() {
    Strings folders = sys_->take("fsync");
    std::sort(folders.begin(), folders.end());
    return folders;
  }

  TemporaryFolder folder_;
  std::shared_ptr<RecordingSys> sys_ = std::make_shared<RecordingSys>();
  std::shared_ptr<Storage> storage_ = make_fs_storage(path("new/root"), sys_);
};

TEST_F(FsDurability, FinishSyncsTheFile) {
  put(*storage_, "a/x", "1");
  EXPECT_EQ(sys_->take("fdatasync"), Strings{path("new/root/a/x")});
}

TEST_F(FsDurability, SyncCoversEveryNewNameAndThoseAboveTheRoot) {
  put(*storage_, "a/b/x", "1");
  put(*storage_, "a/b/y", "1");
  put(*storage_, "c/z", "1");
  EXPECT_EQ(synced_folders(), Strings{});
  storage_->sync();
  EXPECT_EQ(synced_folders(), (Strings{folder_.path().native(), path("new"), path("new/root"), path("new/root/a"),
                                       path("new/root/a/b"), path("new/root/c")}));
  storage_->sync();
  EXPECT_EQ(synced_folders(), Strings{});
}

TEST_F(FsDurability, FoldersThatACrashedTakeMadeAreSyncedToo) {
  fs::create_directories(path("new/root/a/b"));
  put(*storage_, "a/b/x", "1");
  storage_->sync();
  EXPECT_EQ(synced_folders(), (Strings{path("new/root"), path("new/root/a"), path("new/root/a/b")}));
}

TEST_F(FsDurability, FoldersThatWereRemovedNeedNoSync) {
  put(*storage_, "a/x", "1");
  storage_->remove(Strings{"a/x"});
  storage_->sync();
  EXPECT_EQ(synced_folders(), (Strings{folder_.path().native(), path("new"), path("new/root")}));
}

TEST_F(FsDurability, PublishIsWriteSyncRenameSync) {
  fs::create_directories(path("new/root"));
  storage_->publish("meta", "content");
  Strings verbs;
  for (const std::string& event : sys_->events) verbs.push_back(event.substr(0, event.find(' ')));
  EXPECT_EQ(verbs, (Strings{"open", "write", "fdatasync", "rename", "open", "fsync"}));
  const std::string temporary = sys_->events[0].substr(5);
  EXPECT_TRUE(temporary.starts_with(path("new/root/.tmp-"))) << temporary;
  EXPECT_EQ(sys_->events[2], "fdatasync " + temporary);
  EXPECT_EQ(sys_->events[3], "rename " + temporary + " to " + path("new/root/meta"));
  EXPECT_EQ(sys_->events[5], "fsync " + path("new/root"));
}

TEST_F(FsDurability, AnObjectIsOpenedOnce) {
  put(*storage_, "x", std::string(100, 'x'));
  sys_->events.clear();
  const auto reader = storage_->open("x", {});
  std::string out(10, '\0');
  for (std::uint64_t i = 0; i < 10; ++i) reader->read(i * 10, std::as_writable_bytes(std::span(out)));
  EXPECT_EQ(sys_->take("open"), Strings{path("new/root/x")});
  get(*storage_, "x");
  EXPECT_EQ(sys_->take("open"), Strings{path("new/root/x")});
  storage_->sizes(Strings{"x"}, {});
  EXPECT_EQ(sys_->take("open"), Strings{});
}

}  // namespace
}  // namespace torchsnapshot
