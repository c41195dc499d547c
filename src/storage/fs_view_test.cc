// Cached parts of files are had without a copy, and only where that is safe.
#include <gtest/gtest.h>

#include <filesystem>
#include <random>
#include <string>

#include "storage/fs_storage.h"
#include "storage/testing.h"
#include "storage/testing_sys.h"

namespace torchsnapshot {
namespace {

namespace fs = std::filesystem;

/// The machine as it is, but for what a test says of it.
class ViewSys final : public HookedSys {
 public:
  std::function<int(std::string_view)> error = [](std::string_view) { return 0; };
  bool is_remote = false;
  std::optional<std::uint64_t> missing;  ///< bytes that are not cached; nothing: the truth
  int maps = 0;
  int unmaps = 0;
  int populated = 0;
  int depopulated = 0;

  int before(const char* name) override { return error(name); }
  int is_local(int fd, bool* answer) override {
    const int result = HookedSys::is_local(fd, answer);
    if (result == 0) *answer = !is_remote;  // whatever the tests run on
    return result;
  }
  int cachestat(int fd, off_t offset, std::size_t size, std::uint64_t* cached) override {
    if (!missing) return HookedSys::cachestat(fd, offset, size, cached);
    *cached = size - *missing;
    return 0;
  }
  void* map(int fd, std::size_t size) override {
    void* data = HookedSys::map(fd, size);
    maps += data != nullptr ? 1 : 0;
    return data;
  }
  void unmap(void* data, std::size_t size) override {
    ++unmaps;
    HookedSys::unmap(data, size);
  }
  int populate(void* data, std::size_t size) override {
    const int result = HookedSys::populate(data, size);
    populated += result == 0 ? 1 : 0;
    return result;
  }
  int depopulate(void* data, std::size_t size) override {
    ++depopulated;
    return HookedSys::depopulate(data, size);
  }
};

class FsView : public testing::Test {
 protected:
  FsView() {
    // Small enough to stay in the page cache.
    put(*make_fs_storage(folder_.path().native(), std::make_shared<Sys>(), {.mode = IoMode::kBuffered}), "x", content_);
    sys_->missing = 0;
  }
  std::unique_ptr<ObjectReader> open() { return storage_->open("x", {}); }

  TemporaryFolder folder_;
  std::shared_ptr<ViewSys> sys_ = std::make_shared<ViewSys>();
  std::shared_ptr<Storage> storage_ = make_fs_storage(folder_.path().native(), sys_);
  const std::string content_ = random_text(900'001, 11);
};

TEST_F(FsView, ShowsAnyRange) {
  std::mt19937 random(1);
  auto reader = open();
  int seen = 0;
  for (int i = 0; i < 300; ++i) {
    const std::size_t begin = random() % content_.size();
    const std::size_t size = random() % (content_.size() - begin + 1);
    const auto view = reader->view(begin, size);
    EXPECT_EQ(view.has_value(), size >= FsTuning{}.least_view) << size;
    if (!view) continue;
    ++seen;
    ASSERT_TRUE(view->view() == std::string_view(content_).substr(begin, size)) << begin << ' ' << size;
  }
  EXPECT_GT(seen, 100);
  EXPECT_EQ(sys_->populated, seen);
  EXPECT_EQ(sys_->depopulated, seen);
  EXPECT_EQ(sys_->maps, 1);
  reader.reset();
  EXPECT_EQ(sys_->unmaps, 1);
}

TEST_F(FsView, OutlivesTheFileAndItsReader) {
  auto reader = open();
  const auto view = reader->view(1, content_.size() - 1);
  ASSERT_TRUE(view.has_value());
  reader.reset();
  fs::remove(folder_.path() / "x");
  EXPECT_TRUE(view->view() == std::string_view(content_).substr(1));
}

TEST_F(FsView, NotWhatHasToBeReadFirst) {
  sys_->missing = 4096;
  EXPECT_FALSE(open()->view(0, content_.size()).has_value());
  EXPECT_EQ(sys_->populated, 0);
}

TEST_F(FsView, NotOverTheNetwork) {
  sys_->is_remote = true;
  EXPECT_FALSE(open()->view(0, content_.size()).has_value());
  EXPECT_EQ(sys_->maps, 0);
}

TEST_F(FsView, NotPastTheEndOfAFileThatShrank) {
  const auto reader = open();
  fs::resize_file(folder_.path() / "x", content_.size() - 1);
  EXPECT_FALSE(reader->view(0, content_.size()).has_value());
  EXPECT_EQ(sys_->populated, 0);
  expect_error(ErrorCode::kCorrupt, {"/x"}, [&] { static_cast<void>(reader->view(2, content_.size())); });
}

TEST_F(FsView, EachSystemCallFailsOnce) {
  std::set<std::string> failed;
  for (int number = 0;; ++number) {
    int calls = 0;
    bool is_hit = false;
    sys_->error = [&](std::string_view name) {
      if (calls++ != number) return 0;
      is_hit = true;
      failed.emplace(name);
      return EIO;
    };
    try {
      const auto view = open()->view(0, content_.size());
      if (!is_hit) {
        EXPECT_TRUE(view.has_value());
      }
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kIo);
    }
    EXPECT_EQ(sys_->maps, sys_->unmaps);
    if (!is_hit) break;
  }
  EXPECT_EQ(failed, (std::set<std::string>{"open", "fstat", "is_local", "map", "populate", "depopulate", "close"}));
}

TEST_F(FsView, TheRealPageCache) {
  sys_->missing.reset();
  const auto view = open()->view(0, content_.size());
  // Where the kernel tells (Linux 6.5, mincore before), it is there: it was written a moment ago.
  if (view) {
    EXPECT_TRUE(view->view() == content_);
  }
}

}  // namespace
}  // namespace torchsnapshot
