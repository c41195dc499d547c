#include "exec/memory_budget.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

void wait_for_waiting(const MemoryBudget& budget, std::size_t count) {
  while (budget.waiting() != count) std::this_thread::yield();
}

TEST(MemoryBudget, GivesBackWhatALeaseHeld) {
  MemoryBudget budget(100);
  {
    const auto lease = budget.acquire(60, {});
    EXPECT_EQ(lease.bytes(), 60U);
    EXPECT_EQ(budget.in_use(), 60U);
    const auto second = budget.acquire(40, {});
    EXPECT_EQ(budget.in_use(), 100U);
  }
  EXPECT_EQ(budget.in_use(), 0U);
  EXPECT_EQ(budget.peak(), 100U);
  EXPECT_EQ(budget.limit(), 100U);
}

TEST(MemoryBudget, MovedFromLeaseIsEmpty) {
  MemoryBudget budget(100);
  auto first = budget.acquire(10, {});
  MemoryBudget::Lease second(std::move(first));
  EXPECT_EQ(first.bytes(), 0U);  // NOLINT(bugprone-use-after-move): the promise under test
  EXPECT_EQ(second.bytes(), 10U);
  EXPECT_EQ(budget.in_use(), 10U);

  auto third = budget.acquire(20, {});
  third = std::move(second);      // gives back its own 20
  EXPECT_EQ(second.bytes(), 0U);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(third.bytes(), 10U);
  EXPECT_EQ(budget.in_use(), 10U);

  auto& self = third;
  third = std::move(self);
  EXPECT_EQ(third.bytes(), 10U);
  third = {};
  EXPECT_EQ(budget.in_use(), 0U);
  first = {};  // an empty lease gives nothing back
  EXPECT_EQ(budget.in_use(), 0U);
}

TEST(MemoryBudget, RequestAboveTheLimitRunsAlone) {
  MemoryBudget budget(100);
  auto small = budget.acquire(1, {});
  std::atomic<bool> granted = false;
  std::jthread big([&] {
    const auto lease = budget.acquire(1000, {});
    granted = true;
    EXPECT_EQ(budget.in_use(), 1000U);
  });
  wait_for_waiting(budget, 1);
  EXPECT_FALSE(granted);
  small = {};
  big.join();
  EXPECT_TRUE(granted);
  EXPECT_EQ(budget.peak(), 1000U);
}

TEST(MemoryBudget, LimitZeroServesOneAtATime) {
  MemoryBudget budget(0);
  auto first = budget.acquire(5, {});
  std::jthread next([&] { const auto lease = budget.acquire(7, {}); });
  wait_for_waiting(budget, 1);
  first = {};
  next.join();
  EXPECT_EQ(budget.peak(), 7U);
}

TEST(MemoryBudget, SmallRequestDoesNotPassALargeOne) {
  MemoryBudget budget(100);
  auto held = budget.acquire(90, {});
  std::vector<int> order;
  std::mutex order_mutex;
  const auto note = [&](int who) {
    const std::lock_guard lock(order_mutex);
    order.push_back(who);
  };
  std::vector<MemoryBudget::Lease> kept(2);
  std::jthread large([&] {
    kept[0] = budget.acquire(50, {});
    note(0);
  });
  wait_for_waiting(budget, 1);
  std::jthread small([&] {
    kept[1] = budget.acquire(10, {});  // would fit at once
    note(1);
  });
  wait_for_waiting(budget, 2);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  {
    const std::lock_guard lock(order_mutex);
    EXPECT_TRUE(order.empty());
  }
  EXPECT_EQ(budget.in_use(), 90U);
  held = {};
  large.join();
  small.join();
  // Both fit once the large one had its turn, so only the budget's own order is certain: it held 90, then 60.
  EXPECT_EQ(budget.in_use(), 60U);
  EXPECT_EQ(budget.peak(), 90U);
}

TEST(MemoryBudget, ServesInTheOrderOfArrival) {
  MemoryBudget budget(1);
  auto held = budget.acquire(1, {});
  std::vector<int> order;  // guarded by the budget: one holder at a time
  std::vector<std::jthread> threads;
  for (int i = 0; i < 12; ++i) {
    threads.emplace_back([&, i] {
      const auto lease = budget.acquire(1, {});
      order.push_back(i);
    });
    wait_for_waiting(budget, static_cast<std::size_t>(i) + 1);
  }
  held = {};
  threads.clear();
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}));
}

TEST(MemoryBudget, CancelledRequestLetsTheNextOneThrough) {
  MemoryBudget budget(100);
  auto held = budget.acquire(90, {});
  std::stop_source stop;
  std::jthread large([&] {
    try {
      const auto lease = budget.acquire(50, stop.get_token());
      FAIL() << "granted " << lease.bytes() << " bytes";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCancelled);
      EXPECT_STREQ(error.what(), "cancelled while waiting for memory of the budget");
    }
  });
  wait_for_waiting(budget, 1);
  std::jthread small([&] { const auto lease = budget.acquire(10, {}); });
  wait_for_waiting(budget, 2);
  stop.request_stop();
  large.join();
  small.join();  // ends though nothing was given back
  EXPECT_EQ(budget.in_use(), 90U);
  EXPECT_EQ(budget.peak(), 100U);
}

TEST(MemoryBudget, StopRequestedBeforehandIsAnErrorThoughThereIsRoom) {
  MemoryBudget budget(100);
  std::stop_source stop;
  stop.request_stop();
  EXPECT_THROW(static_cast<void>(budget.acquire(1, stop.get_token())), Error);
  EXPECT_EQ(budget.in_use(), 0U);
  EXPECT_EQ(budget.waiting(), 0U);
}

// Several threads with random sizes, some of them cancelled: the limit holds but for a request that runs alone,
// nobody hangs, and all is given back.
TEST(MemoryBudget, RandomSchedules) {
  for (std::uint32_t round = 0; round < 300; ++round) {
    std::mt19937 random(round);
    const std::uint64_t limit = random() % 64;
    const std::size_t thread_count = 2 + random() % 5;
    MemoryBudget budget(limit);
    std::stop_source stop;
    std::atomic<std::uint64_t> model = 0;
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < thread_count; ++t) {
      threads.emplace_back([&, seed = random()] {
        std::mt19937 own(seed);
        for (int i = 0; i < 20; ++i) {
          const std::uint64_t bytes = own() % 80;
          try {
            auto lease = budget.acquire(bytes, own() % 2 == 0 ? stop.get_token() : std::stop_token());
            const std::uint64_t now = model += bytes;
            if (now > limit && bytes > 0) {
              EXPECT_EQ(now, bytes) << "limit " << limit << " round " << round;
            }
            if (own() % 4 == 0) std::this_thread::yield();
            MemoryBudget::Lease moved(std::move(lease));
            model -= bytes;
          } catch (const Error& error) {
            EXPECT_EQ(error.code(), ErrorCode::kCancelled);
            EXPECT_TRUE(stop.stop_requested());
          }
        }
      });
    }
    if (round % 3 == 0) stop.request_stop();
    threads.clear();
    EXPECT_EQ(budget.in_use(), 0U);
    EXPECT_EQ(budget.waiting(), 0U);
    EXPECT_LE(budget.peak(), std::max<std::uint64_t>(limit, 80));
  }
}

TEST(DefaultMemoryBudget, IsWithinItsBounds) {
  EXPECT_GE(default_memory_budget(1), 64ULL << 20);
  EXPECT_LE(default_memory_budget(1), 32ULL << 30);
  EXPECT_LE(default_memory_budget(8), 32ULL << 30);
}

TEST(MemoryBudget, AllAtOnceOrNothing) {
  MemoryBudget budget(100);
  MemoryBudget::Lease whole = budget.try_acquire(90);
  EXPECT_EQ(whole.bytes(), 90U);
  EXPECT_EQ(budget.try_acquire(11).bytes(), 0U);
  {
    const MemoryBudget::Lease part = whole.split(40);
    EXPECT_EQ(part.bytes(), 40U);
    EXPECT_EQ(budget.in_use(), 90U);
  }
  EXPECT_EQ(whole.bytes(), 50U);
  EXPECT_EQ(budget.in_use(), 50U);
  EXPECT_EQ(budget.try_acquire(50).bytes(), 50U);
  EXPECT_EQ(MemoryBudget(10).try_acquire(11).bytes(), 0U) << "not even when nothing else is in use";
}

TEST(MemoryBudget, WhoMustNotWaitForEverTakesMore) {
  using std::chrono::milliseconds;
  MemoryBudget budget(100);
  const MemoryBudget::Lease all = budget.acquire(100, {});
  const MemoryBudget::Lease more = budget.acquire_within(30, milliseconds(1), {});
  EXPECT_EQ(budget.in_use(), 130U);
  const MemoryBudget::Lease again = budget.acquire_within(30, std::chrono::hours(1), {});
  EXPECT_EQ(budget.in_use(), 160U) << "it is above the limit already";
  std::stop_source stop;
  stop.request_stop();
  EXPECT_THROW(static_cast<void>(budget.acquire_within(30, milliseconds(1), stop.get_token())), Error);
}

TEST(MemoryBudget, WhoMustNotWaitForEverComesFirst) {
  MemoryBudget budget(100);
  auto all = std::make_unique<MemoryBudget::Lease>(budget.acquire(100, {}));
  std::atomic<int> order{0};
  int urgent = 0;
  int patient = 0;
  std::jthread first([&] {
    const auto lease = budget.acquire(100, {});
    patient = ++order;
  });
  while (budget.waiting() < 1) std::this_thread::yield();
  std::jthread second([&] {
    const auto lease = budget.acquire_within(100, std::chrono::hours(1), {});
    urgent = ++order;
  });
  while (budget.waiting() < 2) std::this_thread::yield();
  all.reset();
  first.join();
  second.join();
  EXPECT_EQ(urgent, 1);
  EXPECT_EQ(patient, 2);
}

}  // namespace
}  // namespace torchsnapshot
