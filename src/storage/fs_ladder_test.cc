// Which rung a directory gets, and what is told of it: on pretended machines, and on what this one has.
#include "storage/fs_ladder.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "storage/fs_storage.h"
#include "storage/testing.h"
#include "storage/testing_sys.h"

namespace torchsnapshot {
namespace {

namespace fs = std::filesystem;
using Strings = std::vector<std::string>;
const std::string kContent = random_text(5 << 20, 1);

class Ladder : public testing::Test {
 protected:
  std::shared_ptr<Storage> open(IoMode mode = IoMode::kAuto) {
    return make_fs_storage(folder_.path().native(), sys_, {.mode = mode});
  }
  /// Writes and reads, twice; and what was told.
  Strings use(Storage& storage) {
    for (const char* location : {"a", "b"}) {
      put(storage, location, kContent);
      EXPECT_TRUE(get(storage, location) == kContent);
    }
    storage.remove(Strings{"a", "b"});
    return storage.take_notices();
  }
  void expect_page_cache(std::string_view why) {
    const auto storage = open();
    const Strings notices = use(*storage);
    ASSERT_EQ(notices.size(), 1U);
    EXPECT_TRUE(notices[0].starts_with(storage->url() + ": O_DIRECT can't be used here")) << notices[0];
    EXPECT_NE(notices[0].find(why), std::string::npos) << notices[0];
    EXPECT_NE(notices[0].find("page cache"), std::string::npos) << notices[0];
    EXPECT_EQ(storage->io_path(), "page cache");
    EXPECT_EQ(sys_->direct_transfers, 0);
    EXPECT_TRUE(use(*storage).empty());  // told once
    for (const IoMode mode : {IoMode::kDirect, IoMode::kUring}) {
      expect_error(ErrorCode::kUnsupported, {storage->url(), why, "'io'"}, [&] { put(*open(mode), "x", kContent); });
      EXPECT_FALSE(fs::exists(folder_.path() / "x"));
    }
  }

  TemporaryFolder folder_;
  std::shared_ptr<PretendSys> sys_ = std::make_shared<PretendSys>();
};

TEST_F(Ladder, TheTop) {
  const auto storage = open();
  EXPECT_EQ(storage->io_path(), "");
  EXPECT_TRUE(use(*storage).empty());
  EXPECT_EQ(storage->io_path(), "io_uring + O_DIRECT");
}

TEST_F(Ladder, WithoutRings) {
  sys_->error = [](auto call) { return call == "make_ring" ? EPERM : 0; };
  const auto storage = open();
  const Strings notices = use(*storage);
  ASSERT_EQ(notices.size(), 1U);
  EXPECT_EQ(notices[0], storage->url() +
                            ": io_uring can't be used here (io_uring_setup: Operation not permitted); threads do the "
                            "same work, nearly as fast");
  EXPECT_EQ(storage->io_path(), "threads + O_DIRECT");
  expect_error(ErrorCode::kUnsupported, {"io_uring_setup", "'io'"}, [&] { put(*open(IoMode::kUring), "x", kContent); });
  EXPECT_TRUE(use(*open(IoMode::kDirect)).empty());
}

TEST_F(Ladder, TheModesAreUpperLimits) {
  const auto direct = open(IoMode::kDirect);
  EXPECT_TRUE(use(*direct).empty());
  EXPECT_EQ(direct->io_path(), "threads + O_DIRECT");
  EXPECT_EQ(sys_->script->made, 0);
  sys_->direct_opens = 0;
  const auto buffered = open(IoMode::kBuffered);
  EXPECT_TRUE(use(*buffered).empty());
  EXPECT_EQ(buffered->io_path(), "page cache");
  EXPECT_EQ(sys_->direct_opens, 0);
}

TEST_F(Ladder, StatxSaysThereIsNone) {
  sys_->direct_info = {true, 0, 0};
  expect_page_cache("no direct I/O for this file");
}

TEST_F(Ladder, StatxAsksForTooMuch) {
  sys_->direct_info = {true, 512, 1 << 20};
  expect_page_cache("in units of 1048576 bytes");
}

TEST_F(Ladder, OpenRefuses) {
  sys_->open_direct_error = EINVAL;
  expect_page_cache("open with O_DIRECT: Invalid argument");
  // Nor does statx tell.
  sys_->direct_info = {};
  expect_page_cache("open with O_DIRECT: Invalid argument");
}

TEST_F(Ladder, OpenFailsForAnotherReason) {
  sys_->open_direct_error = EMFILE;
  expect_error(ErrorCode::kIo, {"open with O_DIRECT", "Too many open files"}, [&] { put(*open(), "x", kContent); });
}

TEST_F(Ladder, InMemoryThereIsNothingToTell) {
  sys_->has_memory_only = true;
  const auto storage = open();
  EXPECT_TRUE(use(*storage).empty());
  EXPECT_EQ(storage->io_path(), "page cache");
  EXPECT_EQ(sys_->direct_opens, 0);
  expect_error(ErrorCode::kUnsupported, {"in memory", "'io'"}, [&] { put(*open(IoMode::kDirect), "x", kContent); });
}

/// A kernel or file system that tells nothing: the alignment is found out by a transfer, when writing and when reading.
class Trial : public Ladder, public testing::WithParamInterface<bool> {
 protected:
  Trial() { sys_->direct_info = {}; }
  void try_it(Storage& storage) {
    if (GetParam()) return put(storage, "x", kContent);
    put(*make_fs_storage(folder_.path().native(), Sys::real(), {.mode = IoMode::kBuffered}), "x", kContent);
    EXPECT_TRUE(get(storage, "x") == kContent);
  }
  /// Refuses transfers from memory that is aligned to less than `align`.
  class Picky final : public PretendSys {
   public:
    explicit Picky(std::size_t align) : align_(align) { direct_info = {}; }
    ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
      return is_refused(fd, data) ? -1 : PretendSys::pwrite(fd, data, size, offset);
    }
    ssize_t pread(int fd, void* data, std::size_t size, off_t offset) override {
      return is_refused(fd, data) ? -1 : PretendSys::pread(fd, data, size, offset);
    }

   private:
    bool is_refused(int fd, const void* data) {
      const bool refused = is_direct(fd) && std::bit_cast<std::uintptr_t>(data) % align_ != 0;
      if (refused) errno = EINVAL;
      return refused;
    }
    const std::size_t align_;
  };
};

INSTANTIATE_TEST_SUITE_P(Fs, Trial, testing::Bool(),
                         [](const auto& is_write) { return is_write.param ? "Writing" : "Reading"; });

TEST_P(Trial, Works) {
  const auto storage = open(IoMode::kDirect);
  try_it(*storage);
  EXPECT_TRUE(get(*storage, "x") == kContent);
  EXPECT_EQ(storage->io_path(), "threads + O_DIRECT");
  EXPECT_TRUE(storage->take_notices().empty());
}

TEST_P(Trial, WithMoreAlignment) {
  sys_ = std::make_shared<Picky>(4096);
  const auto storage = open(IoMode::kDirect);
  try_it(*storage);
  EXPECT_TRUE(get(*storage, "x") == kContent);
  EXPECT_EQ(storage->io_path(), "threads + O_DIRECT");
}

TEST_P(Trial, Fails) {
  sys_ = std::make_shared<Picky>(std::size_t{1} << 40);  // no address will do
  const auto storage = open();
  try_it(*storage);
  EXPECT_TRUE(get(*storage, "x") == kContent);
  EXPECT_EQ(storage->io_path(), "page cache");
  const Strings notices = storage->take_notices();
  ASSERT_EQ(notices.size(), 1U);
  EXPECT_NE(notices[0].find("a trial of direct I/O: Invalid argument"), std::string::npos) << notices[0];
}

/// Runs `action` in a child; whether it returned true.
bool in_child(const std::function<bool()>& action) {
  const pid_t child = ::fork();
  if (child == 0) {
    bool good = false;
    try {
      good = action();
    } catch (const std::exception& error) {
      static_cast<void>(std::fprintf(stderr, "in the child: %s\n", error.what()));
    }
    ::_exit(good ? 0 : 1);
  }
  int status = 0;
  return child > 0 && ::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/// From now on the calls of io_uring fail in this process as they do in a container.
bool forbid_io_uring() {
  static_assert(SYS_io_uring_setup + 2 == SYS_io_uring_register);
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, SYS_io_uring_setup, 0, 2),
      BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, SYS_io_uring_register, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{static_cast<unsigned short>(std::size(filter)), filter};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

std::string rung_here(const fs::path& folder) {
  const auto storage = open_fs_storage(folder.native());
  put(*storage, "probe", kContent);
  storage->remove(Strings{"probe"});
  return storage->io_path();
}

TEST(ThisMachine, ASeccompFilterForbidsIoUring) {
  const TemporaryFolder folder;
  if (!in_child(forbid_io_uring)) GTEST_SKIP() << "seccomp filters can't be installed here";
  const bool has_direct = rung_here(folder.path()) != "page cache";
  EXPECT_TRUE(in_child([&] {
    if (!forbid_io_uring()) return false;
    const auto storage = open_fs_storage(folder.path().native());
    put(*storage, "x", kContent);
    bool good = get(*storage, "x") == kContent;
    const Strings notices = storage->take_notices();
    if (has_direct) good = good && storage->io_path() == "threads + O_DIRECT";
    if (has_direct && is_uring_built_in()) {
      good = good && notices.size() == 1 && notices[0].find("Operation not permitted") != std::string::npos;
    }
    return good;
  }));
}

TEST(ThisMachine, ASeccompFilterThatComesLater) {
  const TemporaryFolder folder;
  if (!in_child(forbid_io_uring)) GTEST_SKIP() << "seccomp filters can't be installed here";
  if (rung_here(folder.path()) != "io_uring + O_DIRECT") GTEST_SKIP() << "no io_uring here";
  EXPECT_TRUE(in_child([&] {
    const FsTuning several_pieces{.ring = {1 << 20, 1 << 20}};
    const auto storage = make_fs_storage(folder.path().native(), Sys::real(), several_pieces);
    const auto writer = storage->create("x", kContent.size(), {});
    const std::size_t half = kContent.size() / 2 / 4096 * 4096;
    writer->write(0, bytes_of(kContent).first(half));
    if (storage->io_path() != "io_uring + O_DIRECT" || !forbid_io_uring()) return false;
    writer->write(half, bytes_of(kContent).subspan(half));
    writer->finish();
    return storage->io_path() == "threads + O_DIRECT" && get(*storage, "x") == kContent;
  }));
}

TEST(ThisMachine, Tmpfs) {
  const std::string path = "/dev/shm/torchsnapshot-test-" + std::to_string(::getpid());
  const auto storage = open_fs_storage(path);
  try {
    put(*storage, "a/x", kContent);
  } catch (const Error& error) {
    GTEST_SKIP() << "can't write to /dev/shm: " << error.what();
  }
  EXPECT_TRUE(get(*storage, "a/x") == kContent);
  EXPECT_TRUE(storage->take_notices().empty());
  EXPECT_EQ(storage->io_path(), "page cache");
  storage->remove(Strings{"a/x"});
  fs::remove_all(path);
}

// Says which rungs the tests on the real machine had.
TEST(ThisMachine, HasTheTopRung) {
  const TemporaryFolder folder;
  const std::string rung = rung_here(folder.path());
  if (rung != "io_uring + O_DIRECT") GTEST_SKIP() << "the temporary folder's highest rung is: " << rung;
}

TEST(ThisMachine, EachModeOnEachOther) {
  const TemporaryFolder folder;
  const std::string text = kContent.substr(0, kContent.size() - 123);
  for (const char* writes : {"uring", "direct", "buffered"}) {
    try {
      put(*open_fs_storage(folder.path().native(), {{"io", writes}}), writes, text);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << error.what();
      continue;
    }
    for (const char* reads : {"uring", "direct", "buffered"}) {
      try {
        EXPECT_TRUE(get(*open_fs_storage(folder.path().native(), {{"io", reads}}), writes) == text);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << error.what();
      }
    }
  }
}

}  // namespace
}  // namespace torchsnapshot
