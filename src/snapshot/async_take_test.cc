#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "exec/buffer_pool.h"
#include "pipeline/testing_faulty.h"
#include "storage/testing_forward.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {
namespace {

using testing::HasSubstr;

std::shared_ptr<Storage> fresh_storage() {
  static std::atomic<int> count{0};
  return open_memory_storage("async-take-test-" + std::to_string(count++));
}

template <typename Action>
std::string error_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return std::string(to_string(error.code())) + " " + error.what();
  }
  return "no error";
}

/// Tensors of many sizes and forms over memory of their own, and views of one memory.
struct State {
  std::vector<std::unique_ptr<std::vector<std::byte>>> memory;
  AppState app;

  explicit State(unsigned seed, std::size_t tensors = 40, std::size_t max_bytes = 6'000'000) {
    std::mt19937 random(seed);
    Dict dict;
    for (std::size_t i = 0; i < tensors; ++i) {
      const std::size_t bytes = i % 4 == 0 ? 1 + random() % max_bytes : 1 + random() % 5000;
      memory.push_back(std::make_unique<std::vector<std::byte>>(bytes));
      for (std::size_t at = 0; at < bytes; at += 97) (*memory.back())[at] = static_cast<std::byte>(random());
      TensorView view = TensorView::dense(memory.back()->data(), DType::kUInt8, {static_cast<std::int64_t>(bytes)});
      if (i % 3 == 0) {  // every other element
        view.shape[0] /= 2;
        view.strides[0] = 2;
      }
      dict.items.emplace_back("t" + std::to_string(i), view);
      if (i % 5 == 0) dict.items.emplace_back("tied" + std::to_string(i), view);
    }
    dict.items.emplace_back("step", Integer(seed));
    app.emplace_back("state", std::move(dict));
  }

  void scribble() {
    for (const auto& part : memory) std::fill(part->begin(), part->end(), std::byte{0xEE});
  }
  [[nodiscard]] std::vector<std::vector<std::byte>> content() const {
    std::vector<std::vector<std::byte>> all;
    for (const auto& part : memory) all.push_back(*part);
    return all;
  }
};

/// Every stored element of the snapshot equals that of a state made of the same seed.
void expect_holds(const Snapshot& snapshot, unsigned seed, std::size_t tensors = 40,
                  std::size_t max_bytes = 6'000'000) {
  const State expected(seed, tensors, max_bytes);
  State restored(seed, tensors, max_bytes);
  // What is not restored keeps another value, but where the elements of a view lie between those that are not saved.
  for (std::size_t i = 0; i < tensors; ++i) {
    if (i % 3 != 0) std::fill(restored.memory[i]->begin(), restored.memory[i]->end(), std::byte{0x77});
    for (std::size_t at = 0; i % 3 == 0 && at + 1 < restored.memory[i]->size(); at += 2) (*restored.memory[i])[at] = {};
  }
  snapshot.restore(restored.app);
  EXPECT_EQ(restored.content(), expected.content()) << "seed " << seed;
}

TEST(AsyncTake, HoldsWhatWasThereAtTheCall) {
  for (const std::uint64_t budget : {0ULL, 1ULL, 9ULL << 20}) {
    for (unsigned seed = 0; seed < 4; ++seed) {
      State state(seed);
      TakeOptions options;
      options.io.memory_budget_bytes = budget;
      options.batching = seed % 2 == 0;
      options.max_chunk_bytes = seed % 3 == 0 ? 1'000'000 : 512ULL << 20;
      const auto storage = fresh_storage();
      const PendingSnapshot pending = Snapshot::async_take(storage, state.app, options);
      state.scribble();
      state.memory.clear();  // freed before the writes end
      expect_holds(pending.wait(), seed);
      EXPECT_TRUE(pending.done());
      expect_holds(Snapshot(storage), seed);
    }
  }
}

/// Writes only when it may.
class GatedStorage final : public ForwardingStorage {
 public:
  using ForwardingStorage::ForwardingStorage;

  void open_gate() {
    const std::lock_guard lock(mutex_);
    is_open_ = true;
    changed_.notify_all();
  }
  std::unique_ptr<ObjectWriter> create(const std::string& location, std::uint64_t size, std::stop_token stop) override {
    std::unique_lock lock(mutex_);
    if (!changed_.wait(lock, stop, [this] { return is_open_; })) throw Error(ErrorCode::kCancelled, "stopped");
    return ForwardingStorage::create(location, size, std::move(stop));
  }

 private:
  std::mutex mutex_;
  std::condition_variable_any changed_;
  bool is_open_ = false;
};

TEST(AsyncTake, ReturnsBeforeAnythingIsWritten) {
  const auto gate = std::make_shared<GatedStorage>(fresh_storage());
  State state(1);
  const PendingSnapshot pending = Snapshot::async_take(gate, state.app);
  EXPECT_FALSE(pending.done());
  EXPECT_FALSE(pending.wait_for(std::chrono::milliseconds(1)));
  EXPECT_THAT(error_of([&] { Snapshot(gate).restore(state.app); }), HasSubstr("NOT_A_SNAPSHOT"));
  gate->open_gate();
  expect_holds(pending.wait(), 1);
  EXPECT_TRUE(pending.wait_for(std::chrono::milliseconds(0)));
}

// The first is held up; the second commits after it, and what the first wrote is gone.
TEST(AsyncTake, TakesToOnePlaceCommitInOrder) {
  const auto place = fresh_storage();
  const auto gate = std::make_shared<GatedStorage>(place);
  const State first(1, 10, 1000);
  const State second(2, 10, 1000);
  const State third(3, 10, 1000);
  Snapshot::take(place, third.app);
  const PendingSnapshot one = Snapshot::async_take(gate, first.app);
  const PendingSnapshot two = Snapshot::async_take(place, second.app);
  EXPECT_FALSE(two.wait_for(std::chrono::milliseconds(20)));
  expect_holds(Snapshot(place), 3, 10, 1000);
  gate->open_gate();
  two.wait();
  EXPECT_TRUE(one.wait_for(std::chrono::minutes(1)));  // it says so a moment after it lets the other go on
  expect_holds(Snapshot(place), 2, 10, 1000);
  const auto objects = place->list("");
  Snapshot::take(fresh_storage(), second.app);
  const auto fresh = fresh_storage();
  Snapshot::take(fresh, second.app);
  EXPECT_EQ(objects.size(), fresh->list("").size());
}

TEST(AsyncTake, EveryFailureComesFromWaitAndLeavesTheOldSnapshot) {
  const State old(7, 10, 1000);
  const State next(8, 10, 1000);
  for (std::int64_t fail_at = 0;; ++fail_at) {
    const auto place = fresh_storage();
    Snapshot::take(place, old.app);
    const auto before = place->list("");
    const auto faulty = std::make_shared<FaultyStorage>(place, fail_at);
    const PendingSnapshot pending = Snapshot::async_take(faulty, next.app);
    const std::string error = error_of([&] { pending.wait(); });
    if (faulty->calls() <= fail_at) {
      EXPECT_EQ(error, "no error");
      EXPECT_GT(fail_at, 6);
      break;
    }
    if (error == "no error") continue;  // the old objects could not be removed: only a notice
    EXPECT_THAT(error, HasSubstr("injected"));
    EXPECT_EQ(error_of([&] { pending.wait(); }), error) << "again";
    EXPECT_EQ(place->list(""), before) << fail_at;
    expect_holds(Snapshot(place), 7, 10, 1000);
  }
}

TEST(AsyncTake, WrongArgumentsThrowAtOnce) {
  TensorView meta = TensorView::dense(nullptr, DType::kFloat32, {4});
  EXPECT_THAT(error_of([&] {
                Snapshot::async_take(fresh_storage(), {{"s", Dict{.items = {{"w", meta}}}}});
              }),
              HasSubstr("INVALID_ARGUMENT"));
}

TEST(AsyncTake, WhatNobodyWaitedForIsANotice) {
  std::vector<std::string> notices;
  TakeOptions options;
  options.io.on_notice = [&](const std::string& notice) { notices.push_back(notice); };
  const State state(1, 3, 100);
  Snapshot::async_take(std::make_shared<FaultyStorage>(fresh_storage(), 0), state.app, options);
  ASSERT_EQ(notices.size(), 1U);
  EXPECT_THAT(notices[0], testing::AllOf(HasSubstr("nobody waited"), HasSubstr("injected")));
  const auto storage = fresh_storage();
  Snapshot::async_take(storage, state.app, options);
  EXPECT_EQ(notices.size(), 1U);
  expect_holds(Snapshot(storage), 1, 3, 100);
}

TEST(AsyncTake, CanBeCancelled) {
  const auto place = fresh_storage();
  const auto gate = std::make_shared<GatedStorage>(place);
  const State state(1, 10, 1000);
  const PendingSnapshot pending = Snapshot::async_take(gate, state.app);
  pending.cancel();
  EXPECT_THAT(error_of([&] { pending.wait(); }), HasSubstr("CANCELLED"));
  std::stop_source stop;
  TakeOptions options;
  options.io.stop = stop.get_token();
  const PendingSnapshot other = Snapshot::async_take(gate, state.app, options);
  stop.request_stop();
  EXPECT_THAT(error_of([&] { other.wait(); }), HasSubstr("CANCELLED"));
  EXPECT_TRUE(place->list("").empty());
}

TEST(AsyncTake, AForkedChildLeavesItAlone) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer does not follow a fork of several threads";
#endif
  const auto gate = std::make_shared<GatedStorage>(fresh_storage());
  const State state(1, 10, 1000);
  auto pending = std::make_unique<PendingSnapshot>(Snapshot::async_take(gate, state.app));
  const pid_t child = fork();
  if (child == 0) {
    const bool refused = error_of([&] { pending->wait(); }).find("forked child") != std::string::npos;
    pending.reset();
    // A take of its own goes through, to the same place too.
    const State own(2, 10, 1000);
    gate->open_gate();
    Snapshot::async_take(gate, own.app).wait();
    _exit(refused ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  gate->open_gate();
  expect_holds(pending->wait(), 1, 10, 1000);
}

TEST(AsyncTake, KeepsItsBuffersUntilToldOtherwise) {
  const State state(1, 100, 12'000'000);
  const auto gate = std::make_shared<GatedStorage>(fresh_storage());  // all of it is staged before any of it is written
  const PendingSnapshot pending = Snapshot::async_take(gate, state.app);
  gate->open_gate();
  pending.wait();
  EXPECT_GT(staging_pool().count(), kStagingKeep);
  release_staging_memory();
  EXPECT_LE(staging_pool().count(), kStagingKeep);
}

}  // namespace
}  // namespace torchsnapshot
