#include "storage/fs_storage.h"

#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>

#include "storage/conformance.h"
#include "storage/testing.h"
#include "storage/testing_sys.h"

namespace torchsnapshot {
namespace {

namespace fs = std::filesystem;
using Strings = std::vector<std::string>;

const ConformanceBackend kFs{"Fs", [] {
                               const auto folder = std::make_shared<TemporaryFolder>();
                               // The root is not there yet, nor the folder it is in.
                               return [folder] { return open_fs_storage((folder->path() / "new" / "root").native()); };
                             }};

INSTANTIATE_TEST_SUITE_P(Fs, StorageConformance, testing::Values(kFs), backend_name);

class FsStorageTest : public testing::Test {
 protected:
  [[nodiscard]] fs::path path(const std::string& name) const { return folder_.path() / name; }
  static void write_file(const fs::path& path, std::string_view content) {
    std::ofstream(path, std::ios::binary) << content;
  }

  TemporaryFolder folder_;
  std::shared_ptr<Storage> storage_ = open_fs_storage((folder_.path() / "root").native());
};

/// Lower privileges for a scope: root may read and write everything.
class WithoutPrivileges {
 public:
  WithoutPrivileges() : was_root_(::geteuid() == 0) {
    if (was_root_) dropped_ = ::seteuid(65534) == 0;
  }
  ~WithoutPrivileges() {
    if (dropped_ && ::seteuid(0) != 0) std::abort();
  }
  WithoutPrivileges(const WithoutPrivileges&) = delete;
  WithoutPrivileges& operator=(const WithoutPrivileges&) = delete;
  [[nodiscard]] bool works() const { return !was_root_ || dropped_; }

 private:
  bool was_root_;
  bool dropped_ = false;
};

TEST_F(FsStorageTest, ObjectsAreFilesOfTheirName) {
  put(*storage_, "0/model/weight", "content");
  EXPECT_EQ(fs::file_size(path("root/0/model/weight")), 7U);
  fs::create_directories(path("root/by/hand"));
  write_file(path("root/by/hand/file"), "other");
  EXPECT_EQ(get(*storage_, "by/hand/file"), "other");
  EXPECT_EQ(storage_->url(), "fs://" + path("root").native());
}

TEST_F(FsStorageTest, ARelativeRootStaysWhereItWas) {
  const fs::path before = fs::current_path();
  fs::current_path(folder_.path());
  const auto storage = open_fs_storage("relative");
  fs::current_path("/");
  put(*storage, "x", "1");
  fs::current_path(before);
  EXPECT_TRUE(fs::exists(path("relative/x")));
}

TEST_F(FsStorageTest, EmptyFoldersGoButTheRootStays) {
  put(*storage_, "a/b/c/x", "1");
  put(*storage_, "a/y", "1");
  storage_->remove(Strings{"a/b/c/x"});
  EXPECT_TRUE(fs::exists(path("root/a")));
  EXPECT_FALSE(fs::exists(path("root/a/b")));
  storage_->remove(Strings{"a/y"});
  EXPECT_FALSE(fs::exists(path("root/a")));
  EXPECT_TRUE(fs::exists(path("root")));
  // An abandoned object takes its folders along.
  storage_->create("p/q/x", 3, {});
  EXPECT_FALSE(fs::exists(path("root/p")));
}

TEST_F(FsStorageTest, AFileInPlaceOfTheRoot) {
  write_file(path("root"), "I am a file");
  const std::string url = storage_->url();
  const auto refused = [&](auto action) {
    expect_error(ErrorCode::kNotADirectory, {url, "is a file, not a folder", "give the path of a folder"}, action);
  };
  refused([&] { storage_->create("x", 1, {}); });
  refused([&] { storage_->create("a/x", 1, {}); });
  refused([&] { storage_->open("x", {}); });
  refused([&] { storage_->read_all("a/x", 1, {}); });
  refused([&] { storage_->sizes(Strings{"x"}, {}); });
  refused([&] { storage_->publish("x", "1"); });
  refused([&] { storage_->list(""); });
  EXPECT_EQ(fs::file_size(path("root")), 11U);
}

TEST_F(FsStorageTest, AnObjectInPlaceOfAFolder) {
  put(*storage_, "a", "1");
  expect_error(ErrorCode::kNotADirectory, {"root/a/b", "must be a folder"}, [&] { storage_->create("a/b", 1, {}); });
  expect_error(ErrorCode::kNotFound, {"root/a/b"}, [&] { storage_->open("a/b", {}); });
  expect_error(ErrorCode::kNotFound, {"root/a/b"}, [&] { storage_->sizes(Strings{"a/b"}, {}); });
  storage_->remove(Strings{"a/b"});
  EXPECT_EQ(get(*storage_, "a"), "1");
}

TEST_F(FsStorageTest, AFolderIsNoObject) {
  put(*storage_, "a/b", "1");
  expect_error(ErrorCode::kNotFound, {"root/a", "folder"}, [&] { storage_->open("a", {}); });
  expect_error(ErrorCode::kAlreadyExists, {"root/a"}, [&] { storage_->create("a", 1, {}); });
}

TEST_F(FsStorageTest, NeitherFileNorFolder) {
  fs::create_directories(path("root"));
  ASSERT_EQ(::mkfifo(path("root/pipe").c_str(), 0600), 0);
  expect_error(ErrorCode::kUnsupported, {"root/pipe"}, [&] { storage_->open("pipe", {}); });  // and does not hang
  EXPECT_TRUE(storage_->list("").empty());
}

TEST_F(FsStorageTest, SymbolicLinks) {
  fs::create_directories(path("outside"));
  write_file(path("outside/secret"), "s");
  put(*storage_, "data/x", "1");
  fs::create_directory_symlink(path("outside"), path("root/link"));
  fs::create_directory_symlink(path("root"), path("root/data/loop"));
  fs::create_symlink(path("outside/secret"), path("root/file-link"));
  fs::create_symlink(path("nowhere"), path("root/dangling"));
  EXPECT_EQ(storage_->list(""), (Strings{"data/x", "file-link"}));
  EXPECT_EQ(storage_->list("link/"), Strings{});
  EXPECT_EQ(get(*storage_, "file-link"), "s");
  storage_->remove(Strings{"file-link"});
  EXPECT_TRUE(fs::exists(path("outside/secret")));
  expect_error(ErrorCode::kAlreadyExists, {"dangling"}, [&] { storage_->create("dangling", 1, {}); });
  EXPECT_FALSE(fs::exists(path("nowhere")));
  // The root itself may be a link.
  fs::create_directory_symlink(path("root"), path("alias"));
  EXPECT_EQ(open_fs_storage(path("alias").native())->list(""), Strings{"data/x"});
}

TEST_F(FsStorageTest, NamesThatAreNotUtf8) {
  const auto storage = open_fs_storage(path("\xff\xfe root").native());
  put(*storage, "\x80\x81/\xc3", "bytes");
  EXPECT_EQ(get(*storage, "\x80\x81/\xc3"), "bytes");
  EXPECT_EQ(storage->list(""), Strings{"\x80\x81/\xc3"});
  EXPECT_EQ(storage->list("\x80"), Strings{"\x80\x81/\xc3"});
}

TEST_F(FsStorageTest, NamesThatAreTooLong) {
  expect_error(ErrorCode::kIo, {"create"}, [&] { storage_->create(std::string(300, 'n'), 1, {}); });
  EXPECT_EQ(storage_->list(""), Strings{});
}

TEST_F(FsStorageTest, ASizeThatNoFileCanHave) {
  expect_error(ErrorCode::kInvalidArgument, {"root/x"}, [&] { storage_->create("x", ~0ULL, {}); });
  EXPECT_FALSE(fs::exists(path("root/x")));
}

TEST_F(FsStorageTest, AFileThatShrinksIsCorrupt) {
  put(*storage_, "x", std::string(100, 'x'));
  const auto reader = storage_->open("x", {});
  fs::resize_file(path("root/x"), 40);
  std::string out(100, '\0');
  expect_error(ErrorCode::kCorrupt, {"root/x", "only 40 bytes"},
               [&] { reader->read(0, std::as_writable_bytes(std::span(out))); });
}

TEST_F(FsStorageTest, WithoutPermission) {
  put(*storage_, "locked/x", "1");
  fs::permissions(folder_.path(), fs::perms::all);
  constexpr fs::perms kReadOnly =
      fs::perms::owner_read | fs::perms::owner_exec | fs::perms::others_read | fs::perms::others_exec;
  fs::permissions(path("root"), kReadOnly);
  fs::permissions(path("root/locked"), fs::perms::none);
  {
    const WithoutPrivileges scope;
    if (!scope.works()) GTEST_SKIP() << "can't drop root's privileges here";
    const auto denied = [&](auto action) {
      expect_error(ErrorCode::kPermissionDenied, {path("root").native(), "check the permissions"}, action);
    };
    denied([&] { storage_->open("locked/x", {}); });
    denied([&] { storage_->sizes(Strings{"locked/x"}, {}); });
    denied([&] { storage_->list(""); });
    denied([&] { storage_->remove(Strings{"locked/x"}); });
    denied([&] { storage_->create("x", 1, {}); });
    denied([&] { storage_->create("new/x", 1, {}); });
    denied([&] { storage_->publish("x", "1"); });
  }
  fs::permissions(path("root"), fs::perms::owner_all);
  fs::permissions(path("root/locked"), fs::perms::owner_all);
  EXPECT_EQ(storage_->list(""), Strings{"locked/x"});
}

TEST_F(FsStorageTest, RemoveGoesOnAfterAFailure) {
  put(*storage_, "a/x", "1");
  put(*storage_, "locked/x", "1");
  put(*storage_, "z/x", "1");
  for (const char* name : {"", "root", "root/a", "root/z"}) fs::permissions(path(name), fs::perms::all);
  fs::permissions(path("root/locked"),
                  fs::perms::others_read | fs::perms::others_exec | fs::perms::owner_read | fs::perms::owner_exec);
  {
    const WithoutPrivileges scope;
    if (!scope.works()) GTEST_SKIP() << "can't drop root's privileges here";
    expect_error(ErrorCode::kPermissionDenied, {"locked/x"}, [&] {
      storage_->remove(Strings{"a/x", "locked/x", "z/x"});
    });
  }
  fs::permissions(path("root/locked"), fs::perms::owner_all);
  EXPECT_EQ(storage_->list(""), Strings{"locked/x"});
}

/// A tmpfs of a few pages, for as long as the object lives.
class SmallDisk {
 public:
  explicit SmallDisk(fs::path path) : path_(std::move(path)) {
    fs::create_directories(path_);
    is_mounted_ = ::mount("tmpfs", path_.c_str(), "tmpfs", 0, "size=1m") == 0;
    error_ = errno;
  }
  ~SmallDisk() {
    if (is_mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  [[nodiscard]] bool is_mounted() const { return is_mounted_; }
  [[nodiscard]] std::string why_not() const { return std::strerror(error_); }

 private:
  fs::path path_;
  bool is_mounted_;
  int error_;
};

TEST_F(FsStorageTest, AFullDisk) {
  const SmallDisk disk(path("disk"));
  if (!disk.is_mounted()) GTEST_SKIP() << "can't mount a tmpfs here (" << disk.why_not() << ")";
  const auto storage = open_fs_storage(path("disk/root").native());
  put(*storage, "small", std::string(1000, 'x'));
  // Noticed before anything is written.
  expect_error(ErrorCode::kNoSpace, {"disk/root/a/big", "free some space"},
               [&] { storage->create("a/big", 4 << 20, {}); });
  // publish() can't know before it writes.
  expect_error(ErrorCode::kNoSpace, {"disk/root/b/meta", "free some space"},
               [&] { storage->publish("b/meta", std::string(4 << 20, 'x')); });
  EXPECT_EQ(storage->list(""), Strings{"small"});
  EXPECT_FALSE(fs::exists(path("disk/root/a")));
  EXPECT_FALSE(fs::exists(path("disk/root/b")));
  put(*storage, "fits", std::string(500'000, 'x'));  // the space is free again
  // The published object survives a failed replacement.
  storage->publish("meta", "old");
  expect_error(ErrorCode::kNoSpace, {}, [&] { storage->publish("meta", std::string(4 << 20, 'x')); });
  EXPECT_EQ(get(*storage, "meta"), "old");
}

TEST_F(FsStorageTest, NoDescriptorLeaks) {
  const int before = open_descriptors();
  for (int i = 0; i < 50; ++i) {
    const std::string name = "a/" + std::to_string(i);
    put(*storage_, name, "content");
    get(*storage_, name);
    storage_->open(name, {});
    storage_->create("abandoned", 10, {});
    storage_->publish("meta", "x");
    storage_->sync();
    storage_->list("");
    EXPECT_THROW(storage_->create(name, 1, {}), Error);
    EXPECT_THROW(storage_->open("a", {}), Error);
    EXPECT_THROW(storage_->read_all(name, 1, {}), Error);
    EXPECT_THROW(storage_->open("none", {}), Error);
  }
  EXPECT_EQ(open_descriptors(), before);
}

}  // namespace
}  // namespace torchsnapshot
