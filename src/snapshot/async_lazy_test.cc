// async_take with lazy staging, against the same oracle as eager: what the snapshot holds is what was there at the
// call.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "exec/write_guard.h"
#include "pipeline/testing_faulty.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

using Bytes8 = std::vector<std::byte>;

std::shared_ptr<Storage> fresh_storage() {
  static std::atomic<int> count{0};
  return open_memory_storage("async-lazy-test-" + std::to_string(count++));
}

/// Whether the kernel lets this process protect memory; if not, lazy takes are eager, and the oracle holds all the
/// same.
bool can_protect() {
  return WriteGuard::make({}, {.on_write = [](const std::byte*) {}, .on_lost = [](auto) {}}).guard != nullptr;
}

/// Tensors that own their memory, with values that depend on `seed`; from 1 byte to some MB, strided ones and views of
/// one memory among them.
struct State {
  std::vector<std::shared_ptr<Bytes8>> memory;
  AppState app;

  State(unsigned seed, const std::vector<std::size_t>& sizes) {
    Dict dict;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      auto bytes = std::make_shared<Bytes8>(sizes[i]);
      for (std::size_t at = 0; at < sizes[i]; at += 61) (*bytes)[at] = static_cast<std::byte>(seed * 31 + i + at / 61);
      memory.push_back(bytes);
      add(dict, "t" + std::to_string(i), bytes, 0, sizes[i], 1);
      if (i % 3 == 1) {
        add(dict, "view" + std::to_string(i), bytes, sizes[i] / 3, sizes[i] / 2, 1);
        add(dict, "strided" + std::to_string(i), bytes, 0, sizes[i] / 2, 2);
        add(dict, "tied" + std::to_string(i), bytes, 0, sizes[i], 1);
      }
    }
    dict.items.emplace_back("step", Integer(seed));
    app.emplace_back("state", std::move(dict));
  }

  void fill(std::byte value) const {
    for (const auto& part : memory) std::fill(part->begin(), part->end(), value);
  }
  [[nodiscard]] std::vector<Bytes8> content() const {
    std::vector<Bytes8> all;
    for (const auto& part : memory) all.push_back(*part);
    return all;
  }
  /// Lets go of all of it.
  void drop() {
    memory.clear();
    app.clear();
  }

 private:
  static void add(Dict& dict, const std::string& name, const std::shared_ptr<Bytes8>& bytes, std::size_t begin,
                  std::size_t count, std::int64_t stride) {
    TensorView view =
        TensorView::dense(bytes->data() + begin, DType::kUInt8, {static_cast<std::int64_t>(count)}, bytes);
    view.strides[0] = stride;
    dict.items.emplace_back(name, view);
  }
};

const std::vector<std::size_t> kSizes{1, 9'000'001, 4096, 30'000'000, 70'000, 2'200'000, 6'000'000, 0, 12'582'912};

void expect_holds(const Snapshot& snapshot, unsigned seed, const std::vector<std::size_t>& sizes = kSizes) {
  const State expected(seed, sizes);
  State restored(seed, sizes);
  restored.fill(std::byte{0x77});
  snapshot.restore(restored.app);
  EXPECT_EQ(restored.content() == expected.content(), true) << "seed " << seed;
}

/// Changes everything in place, from several threads, until the end of its life.
class Hammer {
 public:
  explicit Hammer(const State& state) {
    for (unsigned seed = 0; seed < 3; ++seed) {
      threads_.emplace_back([&state, seed](const std::stop_token& stop) {
        std::mt19937 random(seed);
        for (unsigned round = 0; round == 0 || !stop.stop_requested(); ++round) {
          const auto& first = state.memory[random() % state.memory.size()];
          if (!first->empty()) (*first)[random() % first->size()] = static_cast<std::byte>(round);
          if (round % 1000 != 0) continue;
          for (const auto& part : state.memory) {
            for (std::size_t at = seed; at < part->size(); at += 4093) (*part)[at] = static_cast<std::byte>(round + 1);
          }
        }
      });
    }
  }

 private:
  std::vector<std::jthread> threads_;
};

TakeOptions lazy(std::vector<std::string>* notices = nullptr) {
  TakeOptions options;
  options.staging = StagingMode::kLazy;
  if (notices != nullptr) {
    options.io.on_notice = [notices](const std::string& notice) { notices->push_back(notice); };
  }
  return options;
}

// The data race that this is about is the point; ThreadSanitizer sees no more than that, and WriteGuard refuses there.
TEST(LazyTake, HoldsWhatWasThereAtTheCall) {
  unsigned seed = 0;
  for (const std::uint64_t budget : {0ULL, 1ULL, 9ULL << 20}) {
    for (const bool batching : {false, true}) {
      ++seed;
      State state(seed, kSizes);
      TakeOptions options = lazy();
      options.io.memory_budget_bytes = budget;
      options.batching = batching;
      options.max_chunk_bytes = seed % 3 == 0 ? 5'000'000 : 512ULL << 20;
      const auto storage = fresh_storage();
      const PendingSnapshot pending = Snapshot::async_take(storage, state.app, options);
      state.fill(std::byte{0xEE});
      {
        const Hammer hammer(state);
        pending.wait();
      }
      expect_holds(Snapshot(storage), seed);
    }
  }
}

TEST(LazyTake, KeepsWhatTheProgramLetsGo) {
  State state(1, kSizes);
  const std::weak_ptr<Bytes8> large = state.memory[3];
  const PendingSnapshot pending = Snapshot::async_take(fresh_storage(), state.app, lazy());
  state.drop();
  const Snapshot snapshot = pending.wait();
  EXPECT_TRUE(large.expired()) << "let go when the take has ended";
  expect_holds(snapshot, 1);
}

TEST(LazyTake, IsLazy) {
  if (!can_protect()) GTEST_SKIP() << "memory can't be write-protected here";
  std::vector<std::string> notices;
  const State state(1, {64'000'000});
  const auto storage = fresh_storage();
  const PendingSnapshot pending = Snapshot::async_take(storage, state.app, lazy(&notices));
  // The views are one memory with the tensor: the plan has them, but only one can be protected.
  EXPECT_THAT(notices, IsEmpty());
  pending.wait_staged();
  state.fill(std::byte{0});
  pending.wait_staged();
  pending.wait();
  pending.wait_staged();
  expect_holds(Snapshot(storage), 1, {64'000'000});
}

TEST(LazyTake, ByPromise) {
  for (const std::uint64_t budget : {0ULL, 1ULL}) {
    TakeOptions options;
    options.staging = StagingMode::kPromised;
    options.io.memory_budget_bytes = budget;
    const State state(2, kSizes);
    const auto storage = fresh_storage();
    const PendingSnapshot pending = Snapshot::async_take(storage, state.app, options);
    pending.wait_staged();
    state.fill(std::byte{0});
    pending.wait();
    expect_holds(Snapshot(storage), 2);
  }
}

TEST(LazyTake, APromiseThatWasBrokenIsNoSnapshot) {
  TakeOptions options;
  options.staging = StagingMode::kPromised;
  options.on_copied = [] { throw Error(ErrorCode::kInvalidArgument, "the promise was broken"); };
  const State state(2, kSizes);
  const auto storage = fresh_storage();
  const PendingSnapshot pending = Snapshot::async_take(storage, state.app, options);
  try {
    pending.wait();
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("the promise was broken"));
  }
  EXPECT_THAT(storage->list(""), IsEmpty());
}

TEST(LazyTake, MemoryThatTheViewsDontOwnIsCopiedAtOnce) {
  State state(3, kSizes);
  for (auto& [key, value] : state.app[0].second.get_if<Dict>()->items) {
    if (auto* view = value.get_if<TensorView>()) view->owner = std::shared_ptr<void>(std::shared_ptr<void>(), view);
  }
  const auto storage = fresh_storage();
  const PendingSnapshot pending = Snapshot::async_take(storage, state.app, lazy());
  state.drop();
  pending.wait();
  expect_holds(Snapshot(storage), 3);
}

TEST(LazyTake, SeveralOfOneState) {
  const State state(10, kSizes);
  std::vector<PendingSnapshot> pending;
  for (unsigned seed = 10; seed < 14; ++seed) {
    const State next(seed, kSizes);
    for (std::size_t i = 0; i < kSizes.size(); ++i) *state.memory[i] = *next.memory[i];
    pending.push_back(Snapshot::async_take(fresh_storage(), state.app, lazy()));
  }
  state.fill(std::byte{0});
  for (unsigned seed = 10; seed < 14; ++seed) expect_holds(pending[seed - 10].wait(), seed);
}

// The kernel writes to the tensors then; on a file system even past the page cache.
TEST(LazyTake, ARestoreIntoWhatIsPending) {
  State state(20, kSizes);
  const State other(21, kSizes);
  const auto storage = fresh_storage();
  Snapshot::take(storage, other.app);
  const PendingSnapshot pending = Snapshot::async_take(fresh_storage(), state.app, lazy());
  Snapshot(storage).restore(state.app);
  EXPECT_EQ(state.content() == other.content(), true);
  expect_holds(pending.wait(), 20);
}

TEST(LazyTake, EveryFailureLeavesTheMemoryAsItShouldBe) {
  const std::vector<std::size_t> sizes{9'000'000, 100};
  for (std::int64_t fail_at = 0;; ++fail_at) {
    const State state(5, sizes);
    const auto faulty = std::make_shared<FaultyStorage>(fresh_storage(), fail_at);
    const PendingSnapshot pending = Snapshot::async_take(faulty, state.app, lazy());
    state.fill(std::byte{0x42});
    std::string error = "none";
    try {
      expect_holds(pending.wait(), 5, sizes);
    } catch (const Error& thrown) {
      error = thrown.what();
    }
    state.fill(std::byte{0x43});
    EXPECT_EQ(state.content()[0], Bytes8(sizes[0], std::byte{0x43}));
    if (faulty->calls() <= fail_at) {
      EXPECT_EQ(error, "none");
      EXPECT_GT(fail_at, 6);
      break;
    }
    EXPECT_THAT(error, testing::AnyOf(HasSubstr("injected"), "none"));
  }
}

TEST(LazyTake, CancelledWithWritersInFaults) {
  const State state(6, kSizes);
  const PendingSnapshot pending = Snapshot::async_take(fresh_storage(), state.app, lazy());
  {
    const Hammer hammer(state);
    pending.cancel();
    try {
      pending.wait();  // it may have come through
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCancelled);
    }
  }
  state.fill(std::byte{1});
}

TEST(LazyTake, AForkedChildHasItsOwnMemory) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer does not follow a fork of several threads";
#endif
  const State state(7, kSizes);
  auto pending = std::make_unique<PendingSnapshot>(Snapshot::async_take(fresh_storage(), state.app, lazy()));
  const pid_t child = fork();
  if (child == 0) {
    alarm(100);
    state.fill(std::byte{1});
    pending.reset();
    const PendingSnapshot own = Snapshot::async_take(fresh_storage(), state.app, lazy());
    state.fill(std::byte{2});
    const Snapshot snapshot = own.wait();
    State restored(7, kSizes);
    snapshot.restore(restored.app);
    _exit(restored.content()[3] == Bytes8(kSizes[3], std::byte{1}) ? 0 : 1);
  }
  state.fill(std::byte{3});
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  expect_holds(pending->wait(), 7);
}

// Some minutes under a sanitizer: --gtest_also_run_disabled_tests.
TEST(LazyTake, DISABLED_OneGiB) {
  const std::vector<std::size_t> sizes{1ULL << 30, 300'000'000};
  for (const std::uint64_t budget : {0ULL, 64ULL << 20}) {
    const State state(8, sizes);
    TakeOptions options = lazy();
    options.io.memory_budget_bytes = budget;
    const PendingSnapshot pending = Snapshot::async_take(fresh_storage(), state.app, options);
    state.fill(std::byte{0xEE});
    {
      const Hammer hammer(state);
      pending.wait();
    }
    expect_holds(pending.wait(), 8, sizes);
  }
}

}  // namespace
}  // namespace torchsnapshot
