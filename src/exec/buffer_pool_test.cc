#include "exec/buffer_pool.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace torchsnapshot {
namespace {

TEST(BufferPool, GivesTheSameMemoryAgain) {
  BufferPool pool(8192);
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
  BufferPool pool(4096);
  {
    auto buffer = pool.acquire();
    const auto moved = std::move(buffer);
    EXPECT_EQ(moved.span().size(), 4096U);
  }
  const auto a = pool.acquire();
  const auto b = pool.acquire();
  EXPECT_NE(a.span().data(), b.span().data());
}

// Nobody else writes into a buffer while it is on loan.
TEST(BufferPool, RandomSchedules) {
  for (int round = 0; round < 100; ++round) {
    BufferPool pool(4096);
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

}  // namespace
}  // namespace torchsnapshot
