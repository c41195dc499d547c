// Direct I/O through the Storage interface: right bytes on each rung, and which way they take.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <numeric>
#include <thread>

#include "storage/conformance.h"
#include "storage/fs_storage.h"
#include "storage/testing.h"
#include "storage/testing_sys.h"

namespace torchsnapshot {
namespace {

namespace fs = std::filesystem;
using Strings = std::vector<std::string>;

/// Everything large enough to go directly, and several pieces to each block.
FsTuning small_tuning() {
  FsTuning tuning;
  tuning.least_object = 1;
  tuning.least_block = 1;
  tuning.ring = {8192, 4096};
  tuning.thread = {16384, 8192};
  tuning.cache_window = 16384;
  return tuning;
}

/// The real machine; a file that was just written counts as cold.
class ColdSys : public Sys {
 public:
  explicit ColdSys(bool has_rings) : has_rings_(has_rings) {}
  int fsync(int) override { return 0; }  // many small files: too slow
  int fdatasync(int) override { return 0; }
  int cachestat(int, off_t, std::size_t, std::uint64_t* cached) override {
    *cached = 0;
    return 0;
  }
  std::unique_ptr<Ring> make_ring(unsigned depth) override {
    if (has_rings_) return Sys::make_ring(depth);
    errno = ENOSYS;
    return nullptr;
  }

 private:
  const bool has_rings_;
};

struct SysKind {
  std::string name;
  std::function<std::shared_ptr<Sys>()> make;

  friend void PrintTo(const SysKind& kind, std::ostream* out) { *out << kind.name; }
};

std::vector<SysKind> sys_kinds() {
  const auto pretend = [](auto change) {
    return [change] {
      auto sys = std::make_shared<PretendSys>();
      change(*sys);
      return sys;
    };
  };
  const auto no_rings = [](PretendSys& sys) { sys.error = [](auto call) { return call == "make_ring" ? EPERM : 0; }; };
  return {
      {"Uring", [] { return std::make_shared<ColdSys>(true); }},
      {"Direct", [] { return std::make_shared<ColdSys>(false); }},
      {"PretendUring", pretend([](PretendSys&) {})},
      {"PretendDirect", pretend(no_rings)},
      {"PretendRefused", pretend([](PretendSys& sys) { sys.open_direct_error = EINVAL; })},
  };
}

std::vector<ConformanceBackend> backends() {
  std::vector<ConformanceBackend> all;
  for (const SysKind& kind : sys_kinds()) {
    if (kind.name == "PretendDirect" || kind.name == "PretendRefused") continue;  // below, as for the time it takes
    all.push_back({"Fs" + kind.name, [kind] {
                     const auto folder = std::make_shared<TemporaryFolder>();
                     const auto sys = kind.make();
                     return [folder, sys] {
                       return make_fs_storage((folder->path() / "new" / "root").native(), sys, small_tuning());
                     };
                   }});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(FsDirect, StorageConformance, testing::ValuesIn(backends()), backend_name);

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Memory that starts at a chosen place in its page.
class PlacedMemory {
 public:
  PlacedMemory(std::size_t size, std::size_t phase) : all_(size + 2 * 4096), size_(size) {
    const auto address = std::bit_cast<std::uintptr_t>(all_.data());
    begin_ = (4096 - address % 4096) % 4096 + phase % 4096;
  }
  [[nodiscard]] std::span<std::byte> span() { return std::span(all_).subspan(begin_, size_); }

 private:
  std::vector<std::byte> all_;
  std::size_t begin_ = 0;
  std::size_t size_;
};

class EachRung : public testing::TestWithParam<SysKind> {
 protected:
  [[nodiscard]] fs::path path(const std::string& name) const { return folder_.path() / name; }

  TemporaryFolder folder_;
  std::shared_ptr<Storage> storage_ = make_fs_storage(folder_.path().native(), GetParam().make(), small_tuning());
};

INSTANTIATE_TEST_SUITE_P(Fs, EachRung, testing::ValuesIn(sys_kinds()),
                         [](const auto& kind) { return kind.param.name; });

// Blocks with random borders, from memory at random phases, in random order, by several threads: neighbours share
// pages, and one goes directly where the other goes through the page cache.
TEST_P(EachRung, RandomBlocksFromRandomMemory) {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    std::mt19937_64 random(seed);
    const std::string content = random_text(random() % 200'000, seed);
    std::vector<std::size_t> cuts{0, content.size()};
    for (auto i = random() % 12; i > 0; --i) {
      const std::size_t cut = random() % (content.size() + 1);
      cuts.push_back(random() % 2 == 0 ? cut : cut / 4096 * 4096);
    }
    std::sort(cuts.begin(), cuts.end());
    std::vector<std::size_t> order(cuts.size() - 1);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);

    const std::string location = std::to_string(seed);
    const auto writer = storage_->create(location, content.size(), {});
    const auto write = [&](std::size_t i, std::size_t phase) {
      PlacedMemory memory(cuts[i + 1] - cuts[i], phase);
      std::copy_n(bytes_of(content).begin() + static_cast<std::ptrdiff_t>(cuts[i]), memory.span().size(),
                  memory.span().begin());
      writer->write(cuts[i], memory.span());
    };
    {
      std::atomic<std::size_t> next = 0;
      std::vector<std::jthread> threads;
      for (std::uint64_t t = 0; t < 3; ++t) {
        threads.emplace_back([&, t] {
          std::mt19937_64 phases(seed * 3 + t);
          for (std::size_t i = next++; i < order.size(); i = next++) {
            // Half of the blocks lie congruent in memory and file.
            write(order[i], phases() % 2 == 0 ? cuts[order[i]] : phases() % 4096);
          }
        });
      }
    }
    writer->finish();
    ASSERT_EQ(fs::file_size(path(location)), content.size()) << "seed " << seed;
    ASSERT_TRUE(read_file(path(location)) == content) << "seed " << seed;

    const auto reader = storage_->open(location, {});
    for (int i = 0; i < 10; ++i) {
      const std::size_t begin = random() % (content.size() + 1);
      PlacedMemory memory(random() % (content.size() - begin + 1), random() % 2 == 0 ? begin : random() % 4096);
      reader->read(begin, memory.span());
      ASSERT_TRUE(std::ranges::equal(memory.span(), bytes_of(content).subspan(begin, memory.span().size())))
          << "seed " << seed << " at " << begin;
    }
  }
}

TEST_P(EachRung, Holes) {
  constexpr std::size_t kSize = 100'001;
  std::string content(kSize, '\0');
  {
    std::ofstream file(path("x"), std::ios::binary);
    file.seekp(50'000);
    file << "content";
  }
  content.replace(50'000, 7, "content");
  fs::resize_file(path("x"), kSize);
  PlacedMemory memory(kSize, 0);
  std::fill(memory.span().begin(), memory.span().end(), std::byte{1});
  storage_->open("x", {})->read(0, memory.span());
  EXPECT_TRUE(std::ranges::equal(memory.span(), bytes_of(content)));
}

TEST_P(EachRung, AFileThatShrinksIsCorrupt) {
  for (const std::size_t left : {0U, 4096U, 40'000U}) {
    put(*storage_, "x", std::string(100'000, 'x'));
    const auto reader = storage_->open("x", {});
    fs::resize_file(path("x"), left);
    PlacedMemory memory(100'000, 0);
    expect_error(ErrorCode::kCorrupt, {"/x", "only " + std::to_string(left) + " bytes"},
                 [&] { reader->read(0, memory.span()); });
    storage_->remove(Strings{"x"});
  }
}

TEST_P(EachRung, NothingLeaks) {
  const int before = open_descriptors();
  const std::string content(50'000, 'x');
  for (int i = 0; i < 20; ++i) {
    put(*storage_, "x", content);
    EXPECT_EQ(get(*storage_, "x"), content);
    storage_->create("abandoned", 100'000, {})->write(0, bytes_of(content));
    storage_->remove(Strings{"x"});
  }
  EXPECT_EQ(open_descriptors(), before);
}

// The child must not touch the parent's rings; both go on.
TEST_P(EachRung, BothSidesOfAForkGoOn) {
  const std::string content = random_text(60'000, 1);
  put(*storage_, "before", content);
  const auto reader = storage_->open("before", {});  // keeps rings in the pool
  std::string out(content.size(), '\0');
  reader->read(0, std::as_writable_bytes(std::span(out)));
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    bool good = false;
    try {
      put(*storage_, "child", content);
      std::string again(content.size(), '\0');
      reader->read(0, std::as_writable_bytes(std::span(again)));
      good = again == content && get(*storage_, "child") == content;
    } catch (const std::exception&) {
      good = false;
    }
    ::_exit(good ? 0 : 1);
  }
  put(*storage_, "parent", content);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  reader->read(0, std::as_writable_bytes(std::span(out)));
  EXPECT_EQ(out, content);
  EXPECT_EQ(get(*storage_, "child"), content);
  EXPECT_EQ(get(*storage_, "parent"), content);
}

// Which way the data takes.
class WhichWay : public testing::Test {
 protected:
  void reopen(const FsTuning& tuning) { storage_ = make_fs_storage(folder_.path().native(), sys_, tuning); }
  void read_all_of(const std::string& location, std::size_t size) {
    PlacedMemory memory(size, 0);
    storage_->open(location, {})->read(0, memory.span());
    EXPECT_TRUE(std::ranges::equal(memory.span(), bytes_of(content_).first(size)));
  }
  void write(std::size_t size, std::size_t phase = 0) {
    PlacedMemory memory(size, phase);
    std::copy_n(bytes_of(content_).begin(), size, memory.span().begin());
    const auto writer = storage_->create("x", size, {});
    writer->write(0, memory.span());
    writer->finish();
  }

  TemporaryFolder folder_;
  std::shared_ptr<PretendSys> sys_ = std::make_shared<PretendSys>();
  std::shared_ptr<Storage> storage_ = make_fs_storage(folder_.path().native(), sys_);
  const std::string content_ = random_text(20 << 20, 7);
};

TEST_F(WhichWay, SmallObjectsAreNotOpenedDirectly) {
  write((256 << 10) - 1);
  read_all_of("x", (256 << 10) - 1);
  EXPECT_EQ(sys_->direct_opens, 0);
  EXPECT_EQ(storage_->io_path(), "");
  storage_->remove(Strings{"x"});
  write(256 << 10);
  EXPECT_EQ(sys_->direct_opens, 1);
  EXPECT_EQ(sys_->direct_transfers, 1);  // one piece needs no ring
  EXPECT_EQ(storage_->io_path(), "io_uring + O_DIRECT");
}

TEST_F(WhichWay, AnAlignedBlockIsOnlyMovedDirectly) {
  write(16 << 20);
  EXPECT_EQ(sys_->script->moved, 4);
  read_all_of("x", 16 << 20);
  EXPECT_EQ(sys_->script->moved, 8);
  EXPECT_EQ(sys_->buffered_transfers, 0);
  EXPECT_TRUE(storage_->take_notices().empty());
}

TEST_F(WhichWay, OnlyTheEndsGoThroughThePageCache) {
  write((16 << 20) + 100);
  EXPECT_EQ(sys_->buffered_transfers, 1);
  EXPECT_EQ(sys_->script->moved, 4);
  read_all_of("x", (16 << 20) + 100);
  EXPECT_EQ(sys_->buffered_transfers, 1);  // the last page is read directly too
  EXPECT_EQ(sys_->script->moved, 9);
}

TEST_F(WhichWay, SmallBlocksGoThroughThePageCache) {
  write(1 << 20);
  const auto reader = storage_->open("x", {});
  PlacedMemory memory((128 << 10) - 1, 0);
  reader->read(0, memory.span());
  EXPECT_EQ(sys_->direct_opens, 1);  // that of the writer
  EXPECT_EQ(sys_->buffered_transfers, 1);
}

TEST_F(WhichWay, WhatIsCachedIsCopiedFromThere) {
  write(16 << 20);
  sys_->script->moved = 0;
  sys_->is_cached = true;
  read_all_of("x", 16 << 20);
  EXPECT_EQ(sys_->script->moved, 0);
  EXPECT_EQ(sys_->buffered_transfers, 2);  // slices of 8 MiB
}

TEST_F(WhichWay, OldKernelsAreAskedByMincore) {
  sys_->error = [](auto call) { return call == "cachestat" ? ENOSYS : 0; };
  write(16 << 20);
  sys_->script->moved = 0;
  sys_->is_cached = true;
  read_all_of("x", 16 << 20);
  EXPECT_EQ(sys_->script->moved, 0);
  sys_->error = [](auto call) { return call == "cachestat" || call == "mincore" ? EPERM : 0; };
  read_all_of("x", 16 << 20);
  EXPECT_EQ(sys_->script->moved, 4);  // not known: counts as cold
}

TEST_F(WhichWay, WindowsAreDecidedOneByOne) {
  class HalfCached final : public PretendSys {
   public:
    int cachestat(int, off_t offset, std::size_t size, std::uint64_t* cached) override {
      *cached = offset < (8 << 20) ? size / 2 : size / 2 - 1;
      return 0;
    }
  };
  sys_ = std::make_shared<HalfCached>();
  reopen({});
  write(16 << 20);
  sys_->script->moved = 0;
  read_all_of("x", 16 << 20);
  EXPECT_EQ(sys_->buffered_transfers, 1);
  EXPECT_EQ(sys_->script->moved, 2);
}

TEST_F(WhichWay, TheRealPageCacheIsSeen) {
  const auto sys = std::make_shared<Sys>();
  const auto storage = make_fs_storage(folder_.path().native(), sys, {.mode = IoMode::kBuffered});
  put(*storage, "y", std::string_view(content_).substr(0, 200'000));  // too small to be dropped behind
  const FileDescriptor fd = open_file(sys, (folder_.path() / "y").native(), O_RDONLY);
  std::uint64_t cached = 0;
  ASSERT_EQ(sys->mincore(fd.get(), 4096, 100'000, &cached), 0);
  EXPECT_EQ(cached, 100'000U);
  if (sys->cachestat(fd.get(), 4096, 100'000, &cached) == 0) {
    EXPECT_EQ(cached, 100'000U);
  } else {
    EXPECT_TRUE(errno == ENOSYS || errno == EPERM) << errno;
  }
}

TEST_F(WhichWay, AFileThatWasReplacedIsReadAsItWasOpened) {
  write(1 << 20);
  const auto reader = storage_->open("x", {});
  fs::rename(folder_.path() / "x", folder_.path() / "old");
  std::ofstream(folder_.path() / "x") << std::string(1 << 20, 'n');
  PlacedMemory memory(1 << 20, 0);
  reader->read(0, memory.span());
  EXPECT_TRUE(std::ranges::equal(memory.span(), bytes_of(content_).first(1 << 20)));
  fs::remove(folder_.path() / "x");
  reader->read(0, memory.span());
  EXPECT_TRUE(std::ranges::equal(memory.span(), bytes_of(content_).first(1 << 20)));
}

TEST_F(WhichWay, AStopWaitsForWhatIsUnderWay) {
  std::stop_source stop;
  sys_->script->result = [&](const RingRequest& request) {
    stop.request_stop();
    return static_cast<int>(request.size);
  };
  PlacedMemory memory(16 << 20, 0);
  FsTuning tuning;
  tuning.ring.straight = 1 << 20;
  reopen(tuning);
  const auto writer = storage_->create("x", 16 << 20, stop.get_token());
  expect_error(ErrorCode::kCancelled, {"/x", "cancelled"}, [&] { writer->write(0, memory.span()); });
  EXPECT_EQ(sys_->script->moved, 8);  // those that the kernel had; FakeRing sees to it that none is left
}

}  // namespace
}  // namespace torchsnapshot
