#include "exec/write_guard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

namespace torchsnapshot {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::size_t kPage = 4096;

/// Pages of their own, never touched.
class Pages {
 public:
  explicit Pages(std::size_t bytes, int flags = MAP_PRIVATE | MAP_ANONYMOUS) : size_(bytes) {
    data_ = static_cast<std::byte*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0));
  }
  ~Pages() { ::munmap(data_, size_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::span<const std::byte> span() const { return {data_, size_}; }

 private:
  std::byte* data_;
  std::size_t size_;
};

/// Keeps a copy of each page as it was before the first write to it.
struct Keeper {
  std::span<const std::byte> memory;
  std::vector<std::byte> copy;
  std::vector<bool> is_copied;
  std::mutex mutex;
  std::vector<std::span<const std::byte>> lost;
  std::unique_ptr<WriteGuard> guard;
  std::string why_not;

  explicit Keeper(std::span<const std::byte> pages, const WriteGuard::Limits& limits = {})
      : memory(pages), copy(pages.size()), is_copied(pages.size() / kPage) {
    auto attempt = WriteGuard::make(limits, {.on_write = [this](const std::byte* page) { keep(page); },
                                             .on_lost =
                                                 [this](std::span<const std::byte> range) {
                                                   const std::lock_guard lock(mutex);
                                                   lost.push_back(range);
                                                 }});
    guard = std::move(attempt.guard);
    why_not = attempt.why_not;
  }

  void keep(const std::byte* page) {
    const auto at = static_cast<std::size_t>(page - memory.data());
    {
      const std::lock_guard lock(mutex);
      if (!is_copied[at / kPage]) std::memcpy(copy.data() + at, page, kPage);
      is_copied[at / kPage] = true;
    }
    guard->release({page, kPage});
  }

  /// What the memory was when it was protected.
  std::vector<std::byte> original() {
    const std::lock_guard lock(mutex);
    for (std::size_t page = 0; page < is_copied.size(); ++page) {
      if (!is_copied[page]) std::memcpy(copy.data() + page * kPage, memory.data() + page * kPage, kPage);
    }
    return copy;
  }
};

#define SKIP_WITHOUT_PROTECTION(keeper)                                                              \
  if (!(keeper).guard) GTEST_SKIP() << "memory can't be write-protected here: " << (keeper).why_not; \
  static_assert(true)

TEST(WriteGuard, SeesEveryFirstWriteBeforeItHappens) {
  // Never touched, partly touched, and as on older kernels.
  for (const bool old : {false, true}) {
    const Pages pages(256 * kPage);
    for (std::size_t i = 0; i < 256 * kPage; i += 3 * kPage) pages.data()[i] = static_cast<std::byte>(i / kPage);
    const std::vector<std::byte> before(pages.data(), pages.data() + 256 * kPage);
    Keeper keeper(pages.span(), {.no_unpopulated = old});
    SKIP_WITHOUT_PROTECTION(keeper);
    ASSERT_TRUE(keeper.guard->protect(pages.span()));
    std::vector<std::jthread> writers;
    for (std::size_t writer = 0; writer < 4; ++writer) {
      writers.emplace_back([&, writer] {
        for (std::size_t round = 0; round < 20; ++round) {
          for (std::size_t page = writer % 2; page < 200; page += 1 + writer % 2) {
            pages.data()[page * kPage + writer] = static_cast<std::byte>(round);
          }
        }
      });
    }
    writers.clear();
    EXPECT_EQ(keeper.original(), before);
    EXPECT_EQ(pages.data()[0], std::byte{19});
    keeper.guard->stop();
    pages.data()[255 * kPage] = std::byte{1};  // not seen any more
    EXPECT_FALSE(keeper.is_copied[255]);
  }
}

TEST(WriteGuard, HoldsUpSystemCalls) {
  const Pages pages(4 * kPage);
  std::memset(pages.data(), 7, 4 * kPage);
  Keeper keeper(pages.span());
  SKIP_WITHOUT_PROTECTION(keeper);
  ASSERT_TRUE(keeper.guard->protect(pages.span()));
  int ends[2] = {-1, -1};
  ASSERT_EQ(::pipe(ends), 0);
  ASSERT_EQ(::write(ends[1], "abc", 3), 3);
  EXPECT_EQ(::read(ends[0], pages.data() + kPage, 3), 3);
  EXPECT_EQ(std::memcmp(pages.data() + kPage, "abc", 3), 0);
  EXPECT_EQ(keeper.original(), std::vector<std::byte>(4 * kPage, std::byte{7}));
  // What reads is not held up.
  ASSERT_EQ(::write(ends[1], pages.data() + 2 * kPage, 8), 8);
  EXPECT_FALSE(keeper.is_copied[2]);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(WriteGuard, WithoutThePrivilegeItSaysSoOrIsToldThatThisWillDo) {
  const Pages pages(kPage);
  pages.data()[0] = std::byte{1};
  Keeper refused(pages.span(), {.no_system_calls = true});
  EXPECT_EQ(refused.guard, nullptr);
  EXPECT_THAT(refused.why_not, testing::AnyOf(HasSubstr("vm.unprivileged_userfaultfd"), HasSubstr("does not allow"),
                                              HasSubstr("ThreadSanitizer")));
  Keeper keeper(pages.span(), {.user_faults = true, .no_system_calls = true});
  SKIP_WITHOUT_PROTECTION(keeper);
  ASSERT_TRUE(keeper.guard->protect(pages.span()));
  int ends[2] = {-1, -1};
  ASSERT_EQ(::pipe(ends), 0);
  ASSERT_EQ(::write(ends[1], "abc", 3), 3);
  EXPECT_EQ(::read(ends[0], pages.data(), 3), -1);
  EXPECT_EQ(errno, EFAULT);
  pages.data()[0] = std::byte{2};
  EXPECT_EQ(::read(ends[0], pages.data(), 3), 3);
  EXPECT_EQ(keeper.original()[0], std::byte{1});
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(WriteGuard, AForkedChildIsNotHeldUp) {
  const Pages pages(64 * kPage);
  std::memset(pages.data(), 7, 64 * kPage);
  Keeper keeper(pages.span());
  SKIP_WITHOUT_PROTECTION(keeper);
  ASSERT_TRUE(keeper.guard->protect(pages.span()));
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    std::memset(pages.data(), 9, 32 * kPage);  // there is nobody who would release it
    _exit(pages.data()[0] == std::byte{9} ? 0 : 1);
  }
  pages.data()[0] = std::byte{8};
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  pages.data()[kPage] = std::byte{8};
  EXPECT_EQ(keeper.original(), std::vector<std::byte>(64 * kPage, std::byte{7}));
}

TEST(WriteGuard, AChildThatLivesOnDoesNotKeepItsParentsMemoryProtected) {
  const Pages pages(kPage);
  pages.data()[0] = std::byte{7};
  int ends[2] = {-1, -1};
  ASSERT_EQ(::pipe(ends), 0);
  pid_t child = 0;
  {
    Keeper keeper(pages.span());
    SKIP_WITHOUT_PROTECTION(keeper);
    ASSERT_TRUE(keeper.guard->protect(pages.span()));
    child = fork();
    if (child == 0) {
      char end = 0;
      ::close(ends[1]);
      _exit(static_cast<int>(::read(ends[0], &end, 1)));
    }
  }
  pages.data()[0] = std::byte{8};
  Keeper again(pages.span());
  EXPECT_TRUE(again.guard->protect(pages.span()));
  ::close(ends[1]);
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  ::close(ends[0]);
}

TEST(WriteGuard, TellsWhenMemoryGoesAway) {
  auto pages = std::make_unique<Pages>(8 * kPage);
  std::memset(pages->data(), 7, 8 * kPage);
  Keeper keeper(pages->span());
  SKIP_WITHOUT_PROTECTION(keeper);
  ASSERT_TRUE(keeper.guard->protect(pages->span()));
  const std::byte* data = pages->data();
  ::madvise(pages->data(), kPage, MADV_DONTNEED);
  pages.reset();
  keeper.guard->stop();
  ASSERT_EQ(keeper.lost.size(), 2U);
  EXPECT_EQ(keeper.lost[0].data(), data);
  EXPECT_EQ(keeper.lost[0].size(), kPage);
  EXPECT_EQ(keeper.lost[1].size(), 8 * kPage);
}

// The kernel refuses to protect while it waits for such messages to be taken: nobody may wait for that to end.
TEST(WriteGuard, MemoryThatIsEmptiedWithoutAPauseStopsNobody) {
  const Pages pages(64 * kPage);
  std::memset(pages.data(), 7, 64 * kPage);
  Keeper keeper(pages.span());
  SKIP_WITHOUT_PROTECTION(keeper);
  ASSERT_TRUE(keeper.guard->protect(pages.span().first(16 * kPage)));
  {
    std::vector<std::jthread> emptying;
    for (std::size_t i = 0; i < 3; ++i) {
      emptying.emplace_back([&pages, i](const std::stop_token& stop) {
        while (!stop.stop_requested()) ::madvise(pages.data() + i * kPage, kPage, MADV_DONTNEED);
      });
    }
    for (std::size_t page = 16; page < 32; ++page) {
      if (keeper.guard->protect(pages.span().subspan(page * kPage, kPage))) pages.data()[page * kPage] = std::byte{8};
    }
    pages.data()[15 * kPage] = std::byte{8};
  }
  EXPECT_EQ(keeper.original()[15 * kPage], std::byte{7});
  EXPECT_TRUE(keeper.guard->is_lost(pages.span().first(kPage)));
}

TEST(WriteGuard, OnePageHasOneGuard) {
  const Pages pages(8 * kPage);
  std::memset(pages.data(), 7, 8 * kPage);
  Keeper one(pages.span());
  SKIP_WITHOUT_PROTECTION(one);
  Keeper other(pages.span());
  ASSERT_TRUE(one.guard->protect(pages.span().first(4 * kPage)));
  EXPECT_FALSE(other.guard->protect(pages.span()));
  EXPECT_TRUE(other.guard->protect(pages.span().subspan(4 * kPage)));
  pages.data()[0] = std::byte{8};
  pages.data()[5 * kPage] = std::byte{8};
  EXPECT_TRUE(one.is_copied[0]);
  EXPECT_TRUE(other.is_copied[5]);
}

TEST(PrivateMemory, IsReadFromTheMap) {
  const char* text =
      "1000-3000 rw-p 00000000 00:00 0 \n"
      "3000-4000 rw-p 00000000 00:00 0    [heap]\n"
      "4000-5000 rw-s 00000000 00:01 55   /dev/shm/x\n"
      "5000-6000 rw-p 00000000 fd:01 77   /usr/lib/x.so\n"
      "6000-7000 r--p 00000000 00:00 0 \n"
      "7000-8000 rw-p 00000000 00:00 0    [anon: torch]\n"
      "8000-9000 rw-p 00000000 00:00 0    [stack]\n"
      "9000-a000 rw-p 00000000 00:0f 91   /anon_hugepage (deleted)\n"
      "7f0000a00000-7f0000b00000 rw-p 00000000 00:00 0";
  const std::vector<AddressRange> ranges = private_memory(text);
  EXPECT_THAT(ranges, ElementsAre(AddressRange{0x1000, 0x4000}, AddressRange{0x7000, 0x8000},
                                  AddressRange{0x7f0000a00000, 0x7f0000b00000}));
  const auto at = [](std::uintptr_t begin, std::size_t size) {
    return std::span(reinterpret_cast<const std::byte*>(begin), size);
  };
  EXPECT_TRUE(is_within(at(0x1000, 0x3000), ranges));
  EXPECT_FALSE(is_within(at(0x1000, 0x3001), ranges));
  EXPECT_FALSE(is_within(at(0xfff, 0x10), ranges));
  EXPECT_FALSE(is_within(at(0x5000, 0x10), ranges));
  EXPECT_FALSE(is_within(at(0x5000, 0x10), {}));
  for (const char* bad :
       {"", "x", "1000", "1000-2000", "1000-2000 ", "1000-2000 rw-p", "-", "1000-2000 rw-p 0 0 0 /x"}) {
    EXPECT_TRUE(private_memory(bad).empty()) << bad;
  }
}

TEST(PrivateMemory, OfThisProcess) {
  const Pages own(4 * kPage);
  const Pages shared(4 * kPage, MAP_SHARED | MAP_ANONYMOUS);
  own.data()[0] = std::byte{1};
  EXPECT_TRUE(is_within(own.span(), private_memory()));
  EXPECT_FALSE(is_within(shared.span(), private_memory()));
}

}  // namespace
}  // namespace torchsnapshot
