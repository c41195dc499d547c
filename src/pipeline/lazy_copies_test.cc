#include "pipeline/lazy_copies.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::size_t kMega = 1 << 20;

/// Memory of its own with known content.
class Memory {
 public:
  explicit Memory(std::size_t bytes, int flags = MAP_PRIVATE | MAP_ANONYMOUS) : size_(bytes) {
    data_ = static_cast<std::byte*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0));
    for (std::size_t at = 0; at < bytes; at += 512) data_[at] = static_cast<std::byte>(at / 512 % 251);
  }
  ~Memory() { ::munmap(data_, size_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] std::span<const std::byte> span() const { return {data_, size_}; }
  [[nodiscard]] std::vector<std::byte> content() const { return {data_, data_ + size_}; }

 private:
  std::byte* data_;
  std::size_t size_;
};

/// Lazy copies of one memory in blocks of 1 MB, and what they delivered.
struct Fixture {
  MemoryBudget budget;
  std::stop_source stop;
  std::string why_not;
  std::mutex mutex;
  std::vector<std::byte> result;
  std::vector<MemoryBudget::Lease> leases;  ///< held, if asked, as if nothing were written
  std::size_t delivered = 0;
  bool keeps_leases = false;
  std::shared_ptr<LazyCopies> copies;

  explicit Fixture(std::uint64_t limit = 1ULL << 40, LazyPromise promise = LazyPromise::kProtected)
      : budget(limit), copies(LazyCopies::make(promise, {}, budget, stop.get_token(), why_not)) {}
  ~Fixture() {
    if (copies) copies->close();
  }
  Fixture(const Fixture&) = delete;
  Fixture& operator=(const Fixture&) = delete;

  std::vector<bool> start(std::span<const std::byte> memory, bool last_first = false) {
    std::vector<LazyBlock> blocks;
    for (std::size_t at = 0; at < memory.size(); at += kMega) {
      blocks.push_back({.memory = memory.subspan(at, std::min(kMega, memory.size() - at)), .region = 0});
    }
    if (last_first) std::reverse(blocks.begin(), blocks.end());
    result.assign(memory.size(), std::byte{0xEE});
    const std::byte* begin = memory.data();
    return copies->start({memory}, blocks,
                         [this, blocks, begin](std::size_t i, MemoryBudget::Lease lease, BufferPool::Buffer copy) {
                           const std::lock_guard lock(mutex);
                           const auto& source = blocks[i].memory;
                           std::memcpy(result.data() + (source.data() - begin), copy.span().data(), source.size());
                           if (keeps_leases) leases.push_back(std::move(lease));
                           ++delivered;
                         });
  }
};

#define SKIP_WITHOUT_PROTECTION(fixture)                                                                \
  if (!(fixture).copies) GTEST_SKIP() << "memory can't be write-protected here: " << (fixture).why_not; \
  static_assert(true)

TEST(LazyCopies, HoldWhatWasThereHoweverOftenItChanges) {
  for (const std::uint64_t limit : {std::size_t{1}, 9 * kMega, 1024 * kMega}) {
    for (const bool runs_ahead : {false, true}) {
      const Memory memory(24 * kMega);
      const auto before = memory.content();
      Fixture fixture(limit);
      SKIP_WITHOUT_PROTECTION(fixture);
      ASSERT_THAT(fixture.start(memory.span(), runs_ahead), ElementsAre(true));
      if (runs_ahead) fixture.copies->run_ahead();
      std::vector<std::jthread> threads;
      for (unsigned seed = 0; seed < 4; ++seed) {
        threads.emplace_back([&, seed] {
          std::mt19937 random(seed);
          for (int i = 0; i < 3000; ++i) memory.data()[random() % memory.size()] = static_cast<std::byte>(i);
          for (std::size_t at = seed; at < memory.size(); at += 4096) memory.data()[at] = std::byte{0xAB};
        });
      }
      threads.clear();
      fixture.copies->wait();
      fixture.copies->close();
      EXPECT_EQ(fixture.delivered, 24U);
      EXPECT_EQ(fixture.result, before) << limit;
    }
  }
}

TEST(LazyCopies, NothingIsCopiedTwiceAndWhatIsAskedForComesFirst) {
  const Memory memory(16 * kMega);
  const auto before = memory.content();
  Fixture fixture;
  SKIP_WITHOUT_PROTECTION(fixture);
  fixture.start(memory.span());
  EXPECT_EQ(fixture.delivered, 0U) << "nobody has asked yet";
  finish_lazy_copies(memory.span().subspan(3 * kMega - 1, 2));
  EXPECT_EQ(fixture.delivered, 2U);
  // Delivered a moment after the write goes on.
  const auto tenth = memory.span().subspan(10 * kMega, kMega);
  memory.data()[10 * kMega] = std::byte{1};
  finish_lazy_copies(tenth);
  EXPECT_EQ(fixture.delivered, 3U);
  memory.data()[10 * kMega + 5000] = std::byte{1};
  finish_lazy_copies(tenth);
  EXPECT_EQ(fixture.delivered, 3U);
  fixture.copies->copy_all();
  EXPECT_EQ(fixture.delivered, 16U);
  std::memset(memory.data(), 0, memory.size());
  fixture.copies->wait();
  EXPECT_EQ(fixture.delivered, 16U);
  EXPECT_EQ(fixture.result, before);
}

TEST(LazyCopies, ByPromise) {
  const Memory memory(16 * kMega);
  const auto before = memory.content();
  Fixture fixture(9 * kMega, LazyPromise::kByCaller);
  ASSERT_THAT(fixture.start(memory.span()), ElementsAre(true));
  fixture.copies->run_ahead();
  std::vector<std::jthread> threads;
  for (int i = 0; i < 3; ++i) threads.emplace_back([&] { fixture.copies->copy_all(); });
  threads.clear();
  std::memset(memory.data(), 0, memory.size());
  fixture.copies->wait();
  EXPECT_EQ(fixture.delivered, 16U);
  EXPECT_EQ(fixture.result, before);
}

// As when the writer needs a lock that the thread in the fault holds.
TEST(LazyCopies, AWriteGoesOnWithoutMemoryInTheBudget) {
  const Memory memory(12 * kMega);
  const auto before = memory.content();
  Fixture fixture(kStagingBufferBytes);
  SKIP_WITHOUT_PROTECTION(fixture);
  fixture.keeps_leases = true;
  fixture.start(memory.span());
  fixture.copies->run_ahead();
  std::memset(memory.data(), 0, memory.size());
  fixture.copies->wait();
  EXPECT_EQ(fixture.result, before);
  EXPECT_EQ(fixture.budget.in_use(), 12U * kStagingBufferBytes);
}

TEST(LazyCopies, TheSameMemoryForTwo) {
  const Memory memory(8 * kMega);
  const auto before = memory.content();
  Fixture one;
  SKIP_WITHOUT_PROTECTION(one);
  Fixture two;
  EXPECT_THAT(one.start(memory.span()), ElementsAre(true));
  memory.data()[0] = std::byte{99};
  const auto between = memory.content();
  EXPECT_THAT(two.start(memory.span()), ElementsAre(true));
  EXPECT_EQ(one.delivered, 8U) << "the first has no pages any more";
  EXPECT_EQ(one.result, before);
  EXPECT_EQ(two.delivered, 0U);
  std::memset(memory.data(), 0, memory.size());
  two.copies->wait();
  EXPECT_EQ(two.result, between);
  one.copies->wait();
}

TEST(LazyCopies, MemoryThatCantBeProtectedIsRefused) {
  const Memory memory(2 * kMega);
  const Memory shared(2 * kMega, MAP_SHARED | MAP_ANONYMOUS);
  Fixture fixture;
  SKIP_WITHOUT_PROTECTION(fixture);
  std::vector<std::size_t> got;
  const auto is_held = fixture.copies->start(
      {shared.span(), memory.span().first(kMega), memory.span().subspan(4096, kMega), memory.span().subspan(kMega)},
      {{shared.span().first(kMega), 0},
       {memory.span().first(kMega), 1},
       {memory.span().subspan(4096, kMega), 2},
       {memory.span().subspan(kMega), 3}},
      [&](std::size_t i, const MemoryBudget::Lease&, const BufferPool::Buffer&) { got.push_back(i); });
  EXPECT_THAT(is_held, ElementsAre(false, true, false, true));
  fixture.copies->copy_all();
  std::sort(got.begin(), got.end());
  EXPECT_THAT(got, ElementsAre(1U, 3U));
}

TEST(LazyCopies, AStopLetsEverybodyGo) {
  const Memory memory(8 * kMega);
  Fixture fixture(kStagingBufferBytes);
  SKIP_WITHOUT_PROTECTION(fixture);
  fixture.keeps_leases = true;
  fixture.start(memory.span());
  fixture.copies->run_ahead();
  fixture.stop.request_stop();
  std::memset(memory.data(), 1, memory.size());
  fixture.copies->wait();
  fixture.copies->copy_all();
  fixture.copies->close();
  std::memset(memory.data(), 2, memory.size());
  finish_lazy_copies(memory.span());
  EXPECT_EQ(memory.data()[memory.size() - 1], std::byte{2});
  EXPECT_LT(fixture.delivered, 8U);
}

TEST(LazyCopies, CloseWhileOthersWrite) {
  for (int round = 0; round < 10; ++round) {
    const Memory memory(8 * kMega);
    Fixture fixture;
    SKIP_WITHOUT_PROTECTION(fixture);
    fixture.start(memory.span());
    std::jthread writer([&] { std::memset(memory.data(), 1, memory.size()); });
    std::jthread other([&] { finish_lazy_copies(memory.span()); });
    fixture.copies->close();
    writer.join();
    other.join();
    EXPECT_EQ(memory.data()[5 * kMega], std::byte{1});
  }
}

TEST(LazyCopies, MemoryThatIsGoneIsAnError) {
  for (int round = 0; round < 50; ++round) {
    auto memory = std::make_unique<Memory>(4 * kMega);
    Fixture fixture;
    SKIP_WITHOUT_PROTECTION(fixture);
    fixture.start(memory->span());
    memory.reset();
    try {
      fixture.copies->wait();
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("given back"));
    }
  }
}

TEST(LazyCopies, MemoryThatIsEmptiedIsAnErrorOrWasCopiedBefore) {
  for (int round = 0; round < 50; ++round) {
    const Memory memory(4 * kMega);
    const auto before = memory.content();
    Fixture fixture;
    SKIP_WITHOUT_PROTECTION(fixture);
    fixture.start(memory.span());
    fixture.copies->run_ahead();
    if (round % 2 == 1) std::this_thread::sleep_for(std::chrono::microseconds(20 * round));
    ASSERT_EQ(::madvise(memory.data(), memory.size(), MADV_DONTNEED), 0);
    try {
      fixture.copies->wait();
      EXPECT_TRUE(fixture.result == before) << round;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("given back"));
    }
  }
}

TEST(TouchOrder, GoesThroughAllKeysAtOnePace) {
  EXPECT_THAT(touch_order({}), ElementsAre());
  // Parameters in one key, their state, twice as much, in another.
  const std::vector<TouchedBlock> blocks{{"model/a", 4},   {"model/b", 4},   {"optim/0/m", 4},
                                         {"optim/0/v", 4}, {"optim/1/m", 4}, {"optim/1/v", 4}};
  EXPECT_THAT(touch_order(blocks), ElementsAre(0U, 2U, 3U, 1U, 4U, 5U));
  EXPECT_THAT(touch_order({{"a/x", 0}, {"a/y", 0}, {"b", 0}}), ElementsAre(0U, 1U, 2U));
}

TEST(TouchOrder, IsAPermutationThatKeepsTheOrderWithinAKey) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    std::vector<TouchedBlock> blocks(random() % 40);
    for (TouchedBlock& block : blocks) {
      static constexpr std::string_view kPaths[] = {"a/x", "a/y", "b/x/y", "c"};
      block = {.path = kPaths[random() % 4], .bytes = random() % 100};
    }
    const auto order = touch_order(blocks);
    std::vector<std::size_t> position(blocks.size(), blocks.size());
    for (std::size_t i = 0; i < order.size(); ++i) position[order[i]] = i;
    ASSERT_EQ(order.size(), blocks.size());
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      ASSERT_LT(position[i], blocks.size());
      for (std::size_t j = i + 1; j < blocks.size(); ++j) {
        if (blocks[i].path[0] != blocks[j].path[0]) continue;
        ASSERT_LT(position[i], position[j]) << "seed " << seed;
      }
    }
  }
}

// While the kernel has an event that nobody takes it protects nothing, and tells so at once (EAGAIN): what takes events
// must not wait for what protects.
TEST(LazyCopies, MemoryMayGoWhileTheRestIsProtected) {
  constexpr std::size_t kRegion = 8 << 12;
  constexpr std::size_t kRegions = 6000;
  const Memory memory(kRegion * kRegions);
  std::vector<std::span<const std::byte>> regions;
  std::vector<LazyBlock> blocks;
  for (std::size_t i = 0; i < kRegions; ++i) {
    regions.push_back(memory.span().subspan(i * kRegion, kRegion));
    blocks.push_back({.memory = regions[i], .region = i});
  }
  MemoryBudget budget(1ULL << 40);
  std::string why_not;
  const auto copies = LazyCopies::make(LazyPromise::kProtected, {}, budget, {}, why_not);
  if (!copies) GTEST_SKIP() << why_not;
  std::vector<std::jthread> threads;
  for (std::size_t thread = 0; thread < 5; ++thread) {  // more than take events
    threads.emplace_back([&, thread] {
      for (int i = 0; i < 40; ++i) {
        ::madvise(memory.data() + thread * kRegion, kRegion, MADV_DONTNEED);
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
    });
  }
  copies->start(regions, blocks, [](std::size_t, MemoryBudget::Lease, BufferPool::Buffer) {});
  threads.clear();
  copies->copy_all();
  try {
    copies->wait();
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("given back"));
  }
  copies->close();
}

}  // namespace
}  // namespace torchsnapshot
