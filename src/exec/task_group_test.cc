#include "exec/task_group.h"

#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <latch>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>

#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

/// Threads of this process, as the kernel counts them.
int thread_count() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("Threads:")) return std::stoi(line.substr(8));
  }
  return -1;
}

TEST(ThreadPool, OneThreadRunsTasksInTheirOrder) {
  std::vector<int> order;
  {
    ThreadPool pool(1);
    for (int i = 0; i < 100; ++i) pool.submit([&order, i] { order.push_back(i); });
  }
  ASSERT_EQ(order.size(), 100U);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
}

TEST(ThreadPool, ZeroThreadsCountAsOne) {
  std::atomic<int> done = 0;
  {
    ThreadPool(0).submit([&] { ++done; });
  }
  EXPECT_EQ(done, 1);
}

TEST(ThreadPool, StartsNoMoreThreadsThanThereAreTasks) {
  const int before = thread_count();
  ThreadPool pool(8);
  std::latch started(3);
  std::latch end(1);
  for (int i = 0; i < 3; ++i) {
    pool.submit([&] {
      started.count_down();
      end.wait();
    });
  }
  started.wait();
  EXPECT_LE(thread_count(), before + 3);
  end.count_down();
}

TEST(ThreadPool, TasksRunAtTheSameTime) {
  ThreadPool pool(4);
  std::latch all_there(4);
  std::latch ended(4);
  for (int i = 0; i < 4; ++i) {
    pool.submit([&] {
      all_there.arrive_and_wait();  // hangs unless four tasks run at once
      ended.count_down();
    });
  }
  ended.wait();
}

TEST(ThreadPool, DestructorRunsWhatTasksQueue) {
  std::atomic<int> done = 0;
  {
    ThreadPool pool(3);
    pool.submit([&] {
      for (int i = 0; i < 10; ++i) {
        pool.submit([&] {
          ++done;
          pool.submit([&] { ++done; });
        });
      }
    });
  }
  EXPECT_EQ(done, 20);
}

TEST(ThreadPool, LeavesNoThread) {
  const int before = thread_count();
  for (int round = 0; round < 20; ++round) {
    ThreadPool pool(8);
    pool.submit([] {});
  }
  // A thread that was joined may be in the kernel's count for a moment yet.
  for (int tries = 0; thread_count() > before && tries < 1000; ++tries) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_LE(thread_count(), before);
}

TEST(TaskGroup, WaitReturnsAfterEveryTask) {
  ThreadPool pool(4);
  TaskGroup group(pool, {});
  std::atomic<int> done = 0;
  for (int i = 0; i < 100; ++i) group.run([&] { ++done; });
  group.wait();
  EXPECT_EQ(done, 100);
  group.run([&] { ++done; });  // still usable
  group.wait();
  EXPECT_EQ(done, 101);
}

TEST(TaskGroup, EmptyGroup) {
  ThreadPool pool(1);
  TaskGroup(pool, {}).wait();
}

TEST(TaskGroup, FirstErrorStopsTheRest) {
  ThreadPool pool(1);
  TaskGroup group(pool, {});
  std::atomic<int> done = 0;
  std::latch queued(1);
  group.run([&] {
    queued.wait();
    throw Error(ErrorCode::kNoSpace, "first");
  });
  for (int i = 0; i < 10; ++i) {
    group.run([&] {
      ++done;
      throw std::runtime_error("never");
    });
  }
  EXPECT_FALSE(group.stop_token().stop_requested());
  queued.count_down();
  for (int again = 0; again < 2; ++again) {
    try {
      group.wait();
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kNoSpace);
      EXPECT_STREQ(error.what(), "first");
    }
  }
  EXPECT_EQ(done, 0);
  EXPECT_TRUE(group.stop_token().stop_requested());
}

TEST(TaskGroup, ErrorsThatTheStopCausesDoNotCoverTheFirst) {
  ThreadPool pool(4);
  for (int round = 0; round < 100; ++round) {
    TaskGroup group(pool, {});
    std::latch all_there(4);
    for (int i = 0; i < 3; ++i) {
      group.run([&] {
        all_there.arrive_and_wait();
        while (!group.stop_token().stop_requested()) std::this_thread::yield();
        throw Error(ErrorCode::kCancelled, "because of the stop");
      });
    }
    group.run([&] {
      all_there.arrive_and_wait();
      throw Error(ErrorCode::kIo, "cause");
    });
    try {
      group.wait();
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kIo);
    }
  }
}

TEST(TaskGroup, OuterTokenCancels) {
  ThreadPool pool(2);
  std::stop_source outer;
  TaskGroup group(pool, outer.get_token());
  std::latch started(1);
  std::atomic<int> later = 0;
  for (int i = 0; i < 2; ++i) {
    group.run([&, i] {
      if (i == 0) started.count_down();
      while (!group.stop_token().stop_requested()) std::this_thread::yield();
    });
  }
  for (int i = 0; i < 10; ++i) group.run([&] { ++later; });
  started.wait();
  outer.request_stop();
  try {
    group.wait();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCancelled);
  }
  EXPECT_EQ(later, 0);
}

TEST(TaskGroup, OuterTokenStoppedBeforehand) {
  ThreadPool pool(1);
  std::stop_source outer;
  outer.request_stop();
  TaskGroup group(pool, outer.get_token());
  bool ran = false;
  group.run([&] { ran = true; });
  EXPECT_THROW(group.wait(), Error);
  EXPECT_FALSE(ran);
}

TEST(TaskGroup, DestructorStopsAndWaits) {
  ThreadPool pool(2);
  std::atomic<bool> ended = false;
  {
    TaskGroup group(pool, {});
    std::latch started(1);
    group.run([&] {
      started.count_down();
      while (!group.stop_token().stop_requested()) std::this_thread::yield();
      ended = true;
      throw Error(ErrorCode::kIo, "nobody asks for this");
    });
    started.wait();
  }
  EXPECT_TRUE(ended);
}

TEST(TaskGroup, TasksMayRunTasks) {
  ThreadPool pool(2);
  TaskGroup group(pool, {});
  std::atomic<int> done = 0;
  std::function<void(int)> tree = [&](int depth) {
    ++done;
    if (depth == 0) return;
    for (int i = 0; i < 2; ++i) group.run([&tree, depth] { tree(depth - 1); });
  };
  group.run([&] { tree(7); });
  group.wait();
  EXPECT_EQ(done, 255);
}

TEST(TaskGroup, TasksAreDestroyedBeforeWaitReturns) {
  ThreadPool pool(4);
  for (int round = 0; round < 200; ++round) {
    auto held = std::make_shared<int>(round);
    TaskGroup group(pool, {});
    for (int i = 0; i < 8; ++i) {
      group.run([held, i] {
        if (i == 3) throw Error(ErrorCode::kIo, "some are skipped");
      });
    }
    EXPECT_THROW(group.wait(), Error);
    EXPECT_EQ(held.use_count(), 1);
  }
}

TEST(TaskGroup, GroupsOfOnePoolFailApart) {
  ThreadPool pool(2);
  TaskGroup good(pool, {});
  TaskGroup bad(pool, {});
  std::atomic<int> done = 0;
  for (int i = 0; i < 50; ++i) {
    bad.run([] { throw std::runtime_error("bad"); });
    good.run([&] { ++done; });
  }
  EXPECT_THROW(bad.wait(), std::runtime_error);
  good.wait();
  EXPECT_EQ(done, 50);
}

// Random trees of tasks, some of which fail or cancel: wait() tells exactly what happened.
TEST(TaskGroup, RandomSchedules) {
  for (std::uint32_t round = 0; round < 400; ++round) {
    std::mt19937 random(round);
    ThreadPool pool(1 + random() % 5);
    std::stop_source outer;
    const auto mode = random() % 3;  // 0: all succeed, 1: some throw, 2: some cancel
    std::atomic<int> ended = 0;
    std::atomic<int> thrown = 0;
    std::atomic<int> queued = 0;
    const int tasks = static_cast<int>(random() % 40);
    TaskGroup group(pool, outer.get_token());
    for (int i = 0; i < tasks; ++i) {
      const bool fails = random() % 10 == 0;
      const bool spawns = random() % 3 == 0;
      ++queued;
      group.run([&, fails, spawns] {
        if (spawns) {
          ++queued;
          group.run([&] { ++ended; });
        }
        if (fails && mode == 1) {
          ++thrown;
          throw Error(ErrorCode::kIo, "random");
        }
        if (fails && mode == 2) {
          ++thrown;
          outer.request_stop();
        }
        ++ended;
      });
    }
    ErrorCode code = ErrorCode::kInternal;
    try {
      group.wait();
    } catch (const Error& error) {
      code = error.code();
    }
    if (thrown == 0) {
      EXPECT_EQ(code, ErrorCode::kInternal) << "round " << round;
      EXPECT_EQ(ended, queued);
    } else {
      EXPECT_EQ(code, mode == 1 ? ErrorCode::kIo : ErrorCode::kCancelled) << "round " << round;
      EXPECT_LE(ended, queued);
    }
  }
}

TEST(TaskGroup, PollsWhileItWaits) {
  ThreadPool pool(1);
  TaskGroup group(pool, {});
  std::atomic<int> polls = 0;
  group.run([&] {
    while (polls < 2) std::this_thread::yield();  // hangs unless the waiting thread polls
  });
  group.wait([&] { ++polls; });
  EXPECT_GE(polls, 2);
}

TEST(TaskGroup, WhatPollThrowsEndsTheGroup) {
  ThreadPool pool(1);
  TaskGroup group(pool, {});
  std::atomic<int> ran = 0;
  group.run([&, stop = group.stop_token()] {
    while (!stop.stop_requested()) std::this_thread::yield();
  });
  group.run([&] { ++ran; });
  try {
    group.wait([] { throw std::runtime_error("interrupted"); });
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "interrupted");
  }
  EXPECT_EQ(ran, 0);
}

}  // namespace
}  // namespace torchsnapshot
