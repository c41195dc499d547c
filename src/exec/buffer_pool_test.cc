#include "exec/buffer_pool.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace torchsnapshot {
namespace {

TEST(BufferPool, GivesTheSameMemoryAgain) {
  BufferPool pool(8192, 4);
  const std::byte* first = nullptr;
  {
    const auto buffer = pool.acquire();
    EXPECT_EQ(buffer.span().size(), 8192U);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.span().data()) % 4096, 0U);
    first = buffer.span().data();
    const auto other = pool.acquire();
    EXPECT_NE(other.span().data(), first);
  }
  // The one that came back last is the warmest.
  EXPECT_EQ(pool.acquire().span().data(), first);
}

TEST(BufferPool, AMovedBufferIsGivenBackOnce) {
  BufferPool pool(4096, 4);
  {
    auto buffer = pool.acquire();
    const auto moved = std::move(buffer);
    EXPECT_EQ(moved.span().size(), 4096U);
  }
  const auto a = pool.acquire();
  const auto b = pool.acquire();
  EXPECT_NE(a.span().data(), b.span().data());
}

TEST(BufferPool, KeepsSoManyAndNoMore) {
  BufferPool pool(kStagingBufferBytes, 2);
  const auto use_four = [&pool] {
    std::vector<BufferPool::Buffer> buffers;
    for (int i = 0; i < 4; ++i) {
      buffers.push_back(pool.acquire());
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffers.back().span().data()) % (2 << 20), 0U);
      std::memset(buffers.back().span().data(), i, buffers.back().span().size());
    }
    EXPECT_EQ(pool.count(), 4U);
  };
  use_four();
  EXPECT_EQ(pool.count(), 2U);
  pool.keep_at_least(3);
  use_four();
  EXPECT_EQ(pool.count(), 3U);
  pool.keep_at_most(1);
  EXPECT_EQ(pool.count(), 1U);
}

// Nobody else writes into a buffer while it is on loan.
TEST(BufferPool, RandomSchedules) {
  for (int round = 0; round < 100; ++round) {
    BufferPool pool(4096, 4);
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&pool, t] {
        for (int i = 0; i < 20; ++i) {
          const auto buffer = pool.acquire();
          std::memset(buffer.span().data(), t, buffer.span().size());
          std::this_thread::yield();
          const std::vector<std::byte> expected(buffer.span().size(), static_cast<std::byte>(t));
          EXPECT_EQ(std::memcmp(buffer.span().data(), expected.data(), expected.size()), 0);
        }
      });
    }
  }
}

TEST(BufferPool, KnowsWhetherThereIsAWarmOne) {
  BufferPool pool(4096, 1);
  EXPECT_FALSE(pool.has_free());
  {
    const auto buffer = pool.acquire();
    EXPECT_FALSE(pool.has_free());
  }
  EXPECT_TRUE(pool.has_free());
}

TEST(BufferPool, IsWarmedUpToWhatItKeeps) {
  BufferPool pool(8192, 2);
  EXPECT_TRUE(pool.warm_one());
  EXPECT_TRUE(pool.has_free());
  EXPECT_TRUE(pool.warm_one());
  EXPECT_FALSE(pool.warm_one());
  EXPECT_EQ(pool.count(), 2U);
}

}  // namespace
}  // namespace torchsnapshot
