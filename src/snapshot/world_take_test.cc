// Takes and restores of several ranks, as threads over one memory storage.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "coord/thread_world.h"
#include "pipeline/testing_faulty.h"
#include "snapshot/world_take.h"
#include "storage/testing_forward.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {
namespace {

using testing::Each;
using testing::HasSubstr;
using testing::IsEmpty;

std::shared_ptr<Storage> fresh_storage() {
  static std::atomic<int> count{0};
  return open_memory_storage("world-take-test-" + std::to_string(count++));
}

/// The coordinator belongs to the world.
std::shared_ptr<Coordinator> shared(Coordinator& ranks) {
  return {std::shared_ptr<void>(), &ranks};
}

TakeOptions options_for(Coordinator& ranks) {
  TakeOptions options;
  options.coordinator = shared(ranks);
  options.commit_timeout = std::chrono::seconds(60);
  return options;
}

/// An int64 tensor that owns its memory.
struct Tensor {
  std::shared_ptr<std::vector<std::int64_t>> memory;
  Dims shape;

  Tensor(Dims dims, std::int64_t first)
      : memory(std::make_shared<std::vector<std::int64_t>>(static_cast<std::size_t>(element_count(dims)))),
        shape(std::move(dims)) {
    std::iota(memory->begin(), memory->end(), first);
  }
  [[nodiscard]] TensorView view() const { return TensorView::dense(memory->data(), DType::kInt64, shape, memory); }
};

/// A dense part of a 2-d tensor whose elements count up from `first`.
ShardedTensor shard_of(const Dims& shape, const std::vector<Box>& boxes, std::int64_t first) {
  ShardedTensor tensor{DType::kInt64, shape, {}, {}, nullptr};
  for (const Box& box : boxes) {
    Tensor part(box.sizes, 0);
    for (std::int64_t i = 0; i < box.sizes[0]; ++i) {
      for (std::int64_t j = 0; j < box.sizes[1]; ++j) {
        (*part.memory)[static_cast<std::size_t>(i * box.sizes[1] + j)] =
            first + (box.offsets[0] + i) * shape[1] + box.offsets[1] + j;
      }
    }
    tensor.shards.push_back({box, part.view()});
  }
  return tensor;
}

std::vector<std::int64_t> elements(const TensorView& view) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(view.numel()));
  if (!all.empty()) std::memcpy(all.data(), view.data, view.nbytes());
  return all;
}

std::vector<std::int64_t> counting(std::size_t count, std::int64_t first) {
  std::vector<std::int64_t> all(count);
  std::iota(all.begin(), all.end(), first);
  return all;
}

TEST(WorldTake, PrivateReplicatedAndSharded) {
  constexpr std::int64_t kRanks = 4;
  const auto storage = fresh_storage();
  ThreadWorld world(kRanks);
  const auto errors = world.run([&](Coordinator& ranks) {
    const std::int64_t rank = ranks.rank();
    const Tensor big({4096, 1024}, 5);  // 32 MiB: in rows over all ranks
    const Tensor small({10}, 100);
    Dict state;
    state.items.emplace_back("big", big.view());
    state.items.emplace_back("small", small.view());
    state.items.emplace_back("tied", small.view());
    state.items.emplace_back("step", Integer(9));
    Dict own;
    own.items.emplace_back("rank", Integer(rank));
    own.items.emplace_back("data", Tensor({3}, rank).view());
    own.items.emplace_back("rows", shard_of({8, 6}, {{{rank * 2, 0}, {2, 6}}}, 7));
    TakeOptions options = options_for(ranks);
    options.replicated = {"model/*"};
    Snapshot::take(storage, AppState{{"model", std::move(state)}, {"own", std::move(own)}}, options);
  });
  EXPECT_THAT(errors, Each(IsEmpty()));
  EXPECT_EQ(world.exchanges(), 2) << "one to all, one to rank 0";
  EXPECT_EQ(world.store().size(), 0U);

  const Snapshot snapshot(storage);
  EXPECT_EQ(snapshot.metadata()->world_size, kRanks);
  const Manifest& manifest = snapshot.metadata()->manifest;
  const auto& big = std::get<ChunkedTensorEntry>(*manifest.find("0/model/big"));
  EXPECT_TRUE(big.replicated);
  ASSERT_EQ(big.chunks.size(), 4U);
  EXPECT_EQ(manifest.find("1/model/big"), nullptr);
  EXPECT_NE(manifest.find("1/model"), nullptr);
  EXPECT_TRUE(is_replicated(*manifest.find("0/model/step")));
  EXPECT_EQ(entry_locations(*manifest.find("0/model/small")), entry_locations(*manifest.find("0/model/tied")));
  for (std::int64_t rank = 0; rank < kRanks; ++rank) {
    const std::string prefix = std::to_string(rank) + "/";
    EXPECT_EQ(elements(*snapshot.read_object(prefix + "model/big").get_if<TensorView>()), counting(4096 * 1024, 5));
    EXPECT_EQ(elements(*snapshot.read_object(prefix + "own/rows").get_if<TensorView>()), counting(48, 7));
    EXPECT_EQ(elements(*snapshot.read_object(prefix + "own/data").get_if<TensorView>()), counting(3, rank));
    EXPECT_EQ(*snapshot.read_object(prefix + "own/rank").get_if<Integer>(), Integer(rank));
    EXPECT_EQ(*snapshot.read_object(prefix + "model/step").get_if<Integer>(), Integer(9));
  }
  std::uint64_t bytes = 0;
  for (const std::string& name : storage->list("data/")) bytes += *storage->sizes(std::vector{name}, {})[0];
  EXPECT_LT(bytes, 4096U * 1024 * 8 + 100'000) << "replicated bytes are stored once";
}

TEST(WorldTake, ShardsOfSeveralRanksAreStoredOnce) {
  // HSDP on a 2 × 2 mesh: ranks 0 and 2 hold the same, and so do 1 and 3.
  const auto storage = fresh_storage();
  ThreadWorld world(4);
  const auto errors = world.run([&](Coordinator& ranks) {
    const std::int64_t half = ranks.rank() % 2;
    Dict state;
    for (int i = 0; i < 6; ++i) {
      ShardedTensor tensor = shard_of({8, 100}, {{{half * 4, 0}, {4, 100}}}, 1000 * i);
      tensor.replicas = {half, half + 2};
      state.items.emplace_back("t" + std::to_string(i), std::move(tensor));
    }
    Snapshot::take(storage, AppState{{"model", std::move(state)}}, options_for(ranks));
  });
  EXPECT_THAT(errors, Each(IsEmpty()));
  const Snapshot snapshot(storage);
  std::vector<std::size_t> stored(4);
  for (const auto& [path, entry] : snapshot.metadata()->manifest) {
    if (const auto* sharded = std::get_if<ShardedTensorEntry>(&entry)) {
      stored[static_cast<std::size_t>(path[0] - '0')] += sharded->shards.size();
    }
  }
  EXPECT_EQ(stored, (std::vector<std::size_t>{3, 3, 3, 3})) << "each shard once, each rank as many";
  for (int i = 0; i < 6; ++i) {
    const Value full = snapshot.read_object("1/model/t" + std::to_string(i));
    EXPECT_EQ(elements(*full.get_if<TensorView>()), counting(800, 1000 * i));
  }
}

TEST(WorldTake, ReplicasThatDoNotAgreeAreStoredByEach) {
  const auto storage = fresh_storage();
  ThreadWorld world(2);
  const auto errors = world.run([&](Coordinator& ranks) {
    Dict state;
    ShardedTensor tensor = shard_of({4, 4}, {{{0, 0}, {4, 4}}}, 0);
    tensor.replicas = {0, 1};
    state.items.emplace_back("t", tensor);
    if (ranks.rank() == 1) state.items.emplace_back("u", std::move(tensor));  // rank 0 has none
    Snapshot::take(storage, AppState{{"model", std::move(state)}}, options_for(ranks));
  });
  EXPECT_THAT(errors, Each(IsEmpty()));
  const Snapshot snapshot(storage);
  EXPECT_EQ(elements(*snapshot.read_object("0/model/u").get_if<TensorView>()), counting(16, 0));
  EXPECT_EQ(elements(*snapshot.read_object("0/model/t").get_if<TensorView>()), counting(16, 0));
}

TEST(WorldTake, ReplicatedIsWhatAllRanksHave) {
  const auto storage = fresh_storage();
  ThreadWorld world(3);
  std::vector<std::string> notices;
  const auto errors = world.run([&](Coordinator& ranks) {
    const std::int64_t rank = ranks.rank();
    Dict state;
    state.items.emplace_back("everywhere", Tensor({100}, 1).view());
    if (rank != 1) state.items.emplace_back("not_on_1", Tensor({100}, rank).view());
    state.items.emplace_back("other_shape", Tensor({rank + 1}, rank).view());
    state.items.emplace_back("other_value", Integer(rank));
    TakeOptions options = options_for(ranks);
    options.replicated = {"*"};
    if (rank == 0) options.io.on_notice = [&](const std::string& notice) { notices.push_back(notice); };
    Snapshot::take(storage, AppState{{"s", std::move(state)}}, options);
  });
  EXPECT_THAT(errors, Each(IsEmpty()));
  EXPECT_EQ(world.exchanges(), 3);
  const Snapshot snapshot(storage);
  const Manifest& manifest = snapshot.metadata()->manifest;
  EXPECT_EQ(manifest.find("1/s/everywhere"), nullptr);
  EXPECT_TRUE(is_replicated(*manifest.find("0/s/everywhere")));
  for (const std::string path : {"0/s/not_on_1", "2/s/not_on_1", "0/s/other_shape", "1/s/other_shape"}) {
    ASSERT_NE(manifest.find(path), nullptr) << path;
    EXPECT_FALSE(is_replicated(*manifest.find(path))) << path;
  }
  EXPECT_EQ(*snapshot.read_object("2/s/other_value").get_if<Integer>(), Integer(0));
  ASSERT_EQ(notices.size(), 2U);
  EXPECT_THAT(notices[0], HasSubstr("'s/other_value'"));
  EXPECT_THAT(notices[1], HasSubstr("'s/other_shape'"));
}

TEST(WorldTake, OtherKeysOnOtherRanks) {
  const auto storage = fresh_storage();
  ThreadWorld world(3);
  const auto errors = world.run([&](Coordinator& ranks) {
    const std::int64_t rank = ranks.rank();
    AppState app{{"all", Dict{.items = {{"x", Integer(rank)}}}}};
    if (rank == 1) app.emplace_back("only_1", Dict{.items = {{"y", Tensor({4}, 50).view()}}});
    if (rank == 2) app.clear();
    Snapshot::take(storage, app, options_for(ranks));
  });
  EXPECT_THAT(errors, Each(IsEmpty()));
  ThreadWorld again(3);
  const auto restored = again.run([&](Coordinator& ranks) {
    const std::int64_t rank = ranks.rank();
    AppState app;
    const Tensor target({4}, 0);  // stays so elsewhere
    if (rank == 1) app.emplace_back("only_1", Dict{.items = {{"y", target.view()}}});
    if (rank == 0) app.emplace_back("all", Dict{});
    RestoreOptions options;
    options.coordinator = shared(ranks);
    Snapshot(storage).restore(app, options);
    if (rank == 0) {
      EXPECT_EQ(*app[0].second.get_if<Dict>()->find("x")->get_if<Integer>(), Integer(0));
    }
    EXPECT_EQ(*target.memory, rank == 1 ? counting(4, 50) : counting(4, 0));
  });
  EXPECT_THAT(restored, Each(IsEmpty()));
}

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;  // fewer random cases: they take ten times as long
#else
constexpr bool kSanitized = false;
#endif

TEST(WorldTake, ReplicasNeverDisagreeInPlanning) {
  // Random app states: every leaf of every rank comes back as this rank saved it, or as rank 0 did where it is
  // replicated.
  std::mt19937 random(11);
  for (int round = 0; round < (kSanitized ? 12 : 40); ++round) {
    const auto size = static_cast<std::int64_t>(2 + random() % 4);
    const auto storage = fresh_storage();
    ThreadWorld world(size);
    const auto seed = static_cast<unsigned>(random());
    const auto errors = world.run([&](Coordinator& ranks) {
      std::mt19937 same(seed);                                           // alike on all ranks
      std::mt19937 own(seed + 1 + static_cast<unsigned>(ranks.rank()));  // not
      Dict replicated;
      for (int i = 0; i < 12; ++i) {
        const auto rows = static_cast<std::int64_t>(same() % 30);
        const bool left_out = same() % 4 == 0 && own() % 2 == 0;
        if (!left_out) replicated.items.emplace_back("r" + std::to_string(i), Tensor({rows, 7}, i).view());
      }
      Dict mine;
      for (auto i = own() % 6; i > 0; --i) {
        mine.items.emplace_back("p" + std::to_string(i), Tensor({static_cast<std::int64_t>(i)}, ranks.rank()).view());
      }
      TakeOptions options = options_for(ranks);
      options.replicated = {"r/*"};
      options.slab_bytes = 1 + own() % 2000;
      Snapshot::take(storage, AppState{{"r", std::move(replicated)}, {"p", std::move(mine)}}, options);
    });
    ASSERT_THAT(errors, Each(IsEmpty()));
    const Snapshot snapshot(storage);
    for (const auto& [path, entry] : snapshot.metadata()->manifest) {
      if (is_container(entry)) continue;
      const Value value = snapshot.read_object(path);
      const auto got = elements(*value.get_if<TensorView>());
      const bool is_private = path.find("/p/") != std::string::npos;
      const std::int64_t first = is_private ? path[0] - '0' : std::stoll(path.substr(path.find("/r/r") + 4));
      EXPECT_EQ(got, counting(got.size(), first)) << path;
    }
  }
}

/// Takes on four ranks whose state differs by `generation`; rank `broken`'s storage fails at call `fail_at`.
std::vector<std::string> take_with_fault(const std::shared_ptr<Storage>& storage, std::int64_t generation,
                                         std::int64_t broken, std::int64_t fail_at, bool async) {
  ThreadWorld world(4);
  return world.run([&](Coordinator& ranks) {
    std::shared_ptr<Storage> own = storage;
    if (ranks.rank() == broken) own = std::make_shared<FaultyStorage>(storage, fail_at);
    const Tensor shared_tensor({5000}, generation);
    const Tensor private_tensor({300}, generation + ranks.rank());
    const AppState app{{"r", Dict{.items = {{"x", shared_tensor.view()}}}},
                       {"p", Dict{.items = {{"x", private_tensor.view()}}}}};
    TakeOptions options = options_for(ranks);
    options.replicated = {"r/*"};
    if (async) {
      Snapshot::async_take(own, app, options).wait();
    } else {
      Snapshot::take(own, app, options);
    }
  });
}

TEST(WorldTake, AFaultOfAnyRankAtAnyCallLeavesTheOldSnapshotOnAllRanks) {
  for (const bool async : {false, true}) {
    int failures = 0;
    for (std::int64_t broken = 0; broken < 4; ++broken) {
      const auto storage = fresh_storage();
      ASSERT_THAT(take_with_fault(storage, 100, -1, 0, async), Each(IsEmpty()));
      const auto before = storage->list("");
      for (std::int64_t fail_at = 0;; ++fail_at) {
        const auto errors = take_with_fault(storage, 200, broken, fail_at, async);
        if (errors[static_cast<std::size_t>(broken)].empty()) {  // the fault lies behind the commit, or nowhere
          EXPECT_THAT(errors, Each(IsEmpty()));
          break;
        }
        ++failures;
        for (std::int64_t rank = 0; rank < 4; ++rank) {
          const std::string& error = errors[static_cast<std::size_t>(rank)];
          EXPECT_THAT(error, HasSubstr("injected"));
          EXPECT_THAT(error, HasSubstr(rank == broken ? "" : "rank " + std::to_string(broken) + ": "));
        }
        EXPECT_EQ(storage->list(""), before) << "what was written is gone";
        const Value old = Snapshot(storage).read_object("1/p/x");
        EXPECT_EQ(elements(*old.get_if<TensorView>()), counting(300, 101));
      }
      ASSERT_THAT(take_with_fault(storage, 300, -1, 0, async), Each(IsEmpty())) << "the next take works";
      const Value now = Snapshot(storage).read_object("3/p/x");
      EXPECT_EQ(elements(*now.get_if<TensorView>()), counting(300, 303));
      // Of rank 0 the last fault may have been that an obsolete object can't be removed, which is only a notice.
      EXPECT_TRUE(broken == 0 || storage->list("").size() == before.size());
    }
    EXPECT_GT(failures, 20);
  }
}

TEST(WorldTake, APromiseThatOneRankBreaksLeavesTheOldSnapshotOnAllRanks) {
  const auto storage = fresh_storage();
  const auto take = [&storage](std::int64_t generation, std::int64_t broken) {
    ThreadWorld world(3);
    return world.run([&](Coordinator& ranks) {
      const Tensor large({600'000}, generation + ranks.rank());  // large enough to be copied later
      TakeOptions options = options_for(ranks);
      options.staging = StagingMode::kPromised;
      options.on_copied = [rank = ranks.rank(), broken] {
        if (rank == broken) throw Error(ErrorCode::kInvalidArgument, "the promise was broken");
      };
      const auto pending =
          Snapshot::async_take(storage, AppState{{"p", Dict{.items = {{"x", large.view()}}}}}, options);
      pending.wait_staged();
      pending.wait();
    });
  };
  ASSERT_THAT(take(100, -1), Each(IsEmpty()));
  const auto before = storage->list("");
  for (std::int64_t broken = 0; broken < 3; ++broken) {
    const auto errors = take(200, broken);
    for (std::int64_t rank = 0; rank < 3; ++rank) {
      const std::string& error = errors[static_cast<std::size_t>(rank)];
      EXPECT_THAT(error, HasSubstr("the promise was broken"));
      EXPECT_THAT(error, HasSubstr(rank == broken ? "" : "rank " + std::to_string(broken) + ": "));
    }
    EXPECT_EQ(storage->list(""), before) << "what was written is gone";
  }
  ASSERT_THAT(take(300, -1), Each(IsEmpty()));
  const Value now = Snapshot(storage).read_object("2/p/x");
  EXPECT_EQ(elements(*now.get_if<TensorView>()), counting(600'000, 302));
}

/// Takes a moment for each object, so that a rank is still writing when another has failed.
class SlowStorage final : public ForwardingStorage {
 public:
  using ForwardingStorage::ForwardingStorage;
  [[nodiscard]] int created() const noexcept { return created_; }

  std::unique_ptr<ObjectWriter> create(const std::string& location, std::uint64_t size, std::stop_token stop) override {
    ++created_;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return ForwardingStorage::create(location, size, std::move(stop));
  }

 private:
  std::atomic<int> created_{0};
};

TEST(WorldTake, ARankThatStillWritesEndsWhenAnotherFails) {
  constexpr int kTensors = 3000;  // a minute, if it wrote them all
  for (const bool async : {false, true}) {
    const auto storage = fresh_storage();
    const auto slow = std::make_shared<SlowStorage>(storage);
    ThreadWorld world(3);
    const auto errors = world.run([&](Coordinator& ranks) {
      std::shared_ptr<Storage> own = storage;
      if (ranks.rank() == 1) own = std::make_shared<FaultyStorage>(storage, 0);
      if (ranks.rank() == 2) own = slow;
      const Tensor tensor({kTensors, 8}, 0);
      Dict state;
      const int count = ranks.rank() == 2 ? kTensors : 1;
      for (int i = 0; i < count; ++i) {
        state.items.emplace_back("t" + std::to_string(i), narrow(tensor.view(), Box{{i, 0}, {1, 8}}));
      }
      TakeOptions options = options_for(ranks);
      options.batching = false;
      options.io.io_concurrency = 1;
      const AppState app{{"s", std::move(state)}};
      if (async) {
        Snapshot::async_take(own, app, options).wait();
      } else {
        Snapshot::take(own, app, options);
      }
    });
    EXPECT_THAT(errors, Each(HasSubstr("injected")));
    EXPECT_THAT(errors[2], HasSubstr("rank 1: "));
    EXPECT_THAT(errors[2], HasSubstr("taking a snapshot to"));
    EXPECT_LT(slow->created(), kTensors / 2) << "it was told to end";
    EXPECT_THAT(storage->list(""), IsEmpty());
    EXPECT_EQ(world.store().size(), 0U);
  }
}

TEST(WorldTake, ARankThatDiesInTheForeground) {
  const auto storage = fresh_storage();
  ThreadWorld world(3);
  const auto errors = world.run([&](Coordinator& ranks) {
    if (ranks.rank() == 1) throw Error(ErrorCode::kInternal, "killed");
    Snapshot::take(storage, AppState{{"s", Dict{.items = {{"x", Integer(1)}}}}}, options_for(ranks));
  });
  EXPECT_THAT(errors[0], HasSubstr("rank 1 is gone"));
  EXPECT_THAT(errors[2], HasSubstr("rank 1 is gone"));
  EXPECT_TRUE(storage->list("").empty());
}

TEST(WorldTake, ARankThatDiesWhileItWrites) {
  const auto storage = fresh_storage();
  ThreadWorld world(3);
  const auto errors = world.run([&](Coordinator& ranks) {
    const Tensor data({1000}, 0);
    TakeOptions options = options_for(ranks);
    options.commit_timeout = std::chrono::milliseconds(200);
    if (ranks.rank() == 1) {
      plan_world_take(ranks, {}, options);  // its exchanges, then nothing more
      return;
    }
    Snapshot::take(storage, AppState{{"s", Dict{.items = {{"x", data.view()}}}}}, options);
  });
  EXPECT_THAT(errors[0], HasSubstr("nothing was heard of rank 1 for 0.2 s"));
  EXPECT_THAT(errors[2], testing::AnyOf(HasSubstr("nothing was heard of rank 1"), HasSubstr("has heard nothing")));
  EXPECT_TRUE(storage->list("").empty());
}

/// What one take of several says of its plan, by rank.
using Plans = std::vector<PlanReport>;

TEST(WorldTake, APlanThatHasNotChangedIsNotExchangedAgain) {
  for (const std::int64_t direct_ranks : {64, 0}) {
    const auto storage = fresh_storage();
    ThreadWorld world(4);
    std::int64_t added = -1;  // a rank that has one more tensor
    const auto take = [&](std::int64_t generation, std::int64_t step, std::int64_t stepping) {
      Plans plans(4);
      const auto errors = world.run([&](Coordinator& ranks) {
        const std::int64_t rank = ranks.rank();
        static const Tensor big({4096, 1024}, 0);  // where memory lies must not matter: the same each time
        const std::int64_t half = rank % 2;
        ShardedTensor sharded = shard_of({8, 6}, {{{half * 4, 0}, {4, 6}}}, generation);
        sharded.replicas = {half, half + 2};
        Dict own{
            .items = {{"step", Integer(rank == stepping ? step : 1)}, {"x", Tensor({3}, generation + rank).view()}}};
        if (rank == added) own.items.emplace_back("more", Tensor({2}, 0).view());
        const AppState app{{"r", Dict{.items = {{"big", big.view()}, {"step", Integer(step)}}}},
                           {"own", std::move(own)},
                           {"s", Dict{.items = {{"t", std::move(sharded)}}}}};
        TakeOptions options = options_for(ranks);
        options.replicated = {"r/*"};
        options.direct_ranks = direct_ranks;
        options.on_planned = [&](const PlanReport& report) { plans[static_cast<std::size_t>(rank)] = report; };
        Snapshot::take(storage, app, options);
      });
      EXPECT_THAT(errors, Each(IsEmpty()));
      const Snapshot snapshot(storage);
      for (std::int64_t rank = 0; rank < 4; ++rank) {
        const std::string prefix = std::to_string(rank) + "/";
        EXPECT_EQ(*snapshot.read_object(prefix + "r/step").get_if<Integer>(), Integer(step));
        EXPECT_EQ(*snapshot.read_object(prefix + "own/step").get_if<Integer>(), Integer(rank == stepping ? step : 1));
        EXPECT_EQ(elements(*snapshot.read_object(prefix + "own/x").get_if<TensorView>()),
                  counting(3, generation + rank));
        EXPECT_EQ(elements(*snapshot.read_object(prefix + "s/t").get_if<TensorView>()), counting(48, generation));
        EXPECT_EQ(elements(*snapshot.read_object(prefix + "r/big").get_if<TensorView>()), counting(4096 * 1024, 0));
      }
      return plans;
    };
    const auto expect = [](const Plans& plans, bool unchanged, int exchanges) {
      for (const PlanReport& plan : plans) {
        EXPECT_EQ(plan.is_unchanged, unchanged);
        EXPECT_EQ(plan.figures.exchanges, exchanges);
      }
    };
    const int full = direct_ranks == 0 ? 4 : 2;  // and one for the path: 4 + 1 for each stateful
    const Plans first = take(10, 1, 0);
    expect(first, false, full);
    const Plans again = take(20, 1, 0);
    expect(again, true, 1);
    expect(take(30, 2, 0), true, 1);  // of rank 0's values nobody need be told
    const Plans stepped = take(40, 3, 2);
    expect(stepped, true, 2);  // those of rank 2, and of rank 0, which is back to 1
    expect(take(50, 4, 2), true, 2);
    expect(take(50, 4, 2), true, 1);
    for (const PlanReport& plan : again) EXPECT_LT(plan.figures.bytes_sent, 500U);
    for (std::size_t rank = 1; rank < 4; ++rank) {
      EXPECT_LT(again[rank].figures.bytes_received, 500U + 1000U) << "the sums, which this world gathers";
      EXPECT_GT(first[rank].figures.bytes_sent, again[rank].figures.bytes_sent);
    }
    EXPECT_LT(stepped[1].figures.bytes_sent, 500U) << "rank 1 has no new values";
    added = 3;
    expect(take(60, 5, 1), false, full);
    expect(take(70, 5, 1), true, 1);
    added = -1;
    expect(take(80, 5, 1), false, full);
  }
}

TEST(WorldTake, RandomSequencesOfTakesOverOneWorld) {
  // The state of each rank changes at random, in values or in layout; some takes fail. What is read back is what the
  // last take that succeeded saved, and plans are repeated exactly when no layout has changed since the last plan.
  std::mt19937 random(5);
  for (int round = 0; round < (kSanitized ? 4 : 15); ++round) {
    const auto size = static_cast<std::int64_t>(2 + random() % 4);
    const auto storage = fresh_storage();
    ThreadWorld world(size);
    const auto of = [](std::int64_t rank) { return static_cast<std::size_t>(rank); };
    std::vector<std::int64_t> tensors(of(size), 1);
    std::vector<std::int64_t> steps(of(size), 0);
    std::int64_t replicated = 2;
    bool layout_changed = true;
    std::int64_t seen_unchanged = 0;
    for (std::int64_t generation = 1; generation < 12; ++generation) {
      switch (random() % 5) {
        case 0:
          ++tensors[random() % of(size)];
          layout_changed = true;
          break;
        case 1:
          ++replicated;
          layout_changed = true;
          break;
        case 2:
        case 3:
          steps[random() % of(size)] += static_cast<std::int64_t>(random() % 1000);
          break;
        default:
          break;
      }
      const std::int64_t broken = random() % 4 == 0 ? static_cast<std::int64_t>(random() % of(size)) : -1;
      const std::int64_t direct_ranks = random() % 2 == 0 ? 64 : 0;
      Plans plans(of(size));
      const auto errors = world.run([&](Coordinator& ranks) {
        const std::int64_t rank = ranks.rank();
        Dict own{.items = {{"step", Integer(steps[of(rank)])}}};
        for (std::int64_t i = 0; i < tensors[of(rank)]; ++i) {
          own.items.emplace_back("t" + std::to_string(i), Tensor({i + 1}, generation * 100 + rank).view());
        }
        Dict same;
        for (std::int64_t i = 0; i < replicated; ++i) {
          same.items.emplace_back("r" + std::to_string(i), Tensor({7}, generation + i).view());
        }
        TakeOptions options = options_for(ranks);
        options.replicated = {"same/*"};
        options.direct_ranks = direct_ranks;
        options.on_planned = [&](const PlanReport& report) { plans[of(rank)] = report; };
        std::shared_ptr<Storage> place = storage;
        if (rank == broken) place = std::make_shared<FaultyStorage>(storage, 0);
        Snapshot::take(place, AppState{{"own", std::move(own)}, {"same", std::move(same)}}, options);
      });
      for (const PlanReport& plan : plans) EXPECT_EQ(plan.is_unchanged, !layout_changed) << generation;
      seen_unchanged += plans[0].is_unchanged ? 1 : 0;
      layout_changed = false;
      if (broken >= 0) {
        EXPECT_THAT(errors, Each(HasSubstr("injected")));
        continue;
      }
      ASSERT_THAT(errors, Each(IsEmpty()));
      const Snapshot snapshot(storage);
      for (std::int64_t rank = 0; rank < size; ++rank) {
        const std::string prefix = std::to_string(rank) + "/";
        EXPECT_EQ(*snapshot.read_object(prefix + "own/step").get_if<Integer>(), Integer(steps[of(rank)]));
        for (std::int64_t i = 0; i < tensors[of(rank)]; ++i) {
          const Value value = snapshot.read_object(prefix + "own/t" + std::to_string(i));
          EXPECT_EQ(elements(*value.get_if<TensorView>()), counting(of(i + 1), generation * 100 + rank));
        }
        for (std::int64_t i = 0; i < replicated; ++i) {
          const Value value = snapshot.read_object(prefix + "same/r" + std::to_string(i));
          EXPECT_EQ(elements(*value.get_if<TensorView>()), counting(7, generation + i));
        }
      }
    }
    EXPECT_GT(seen_unchanged, 0);
  }
}

TEST(WorldTake, AnErrorInThePlanOfOneRankOfMany) {
  for (const bool in_plan : {true, false}) {
    const auto storage = fresh_storage();
    ThreadWorld world(4);
    const auto errors = world.run([&](Coordinator& ranks) {
      TakeOptions options = options_for(ranks);
      options.direct_ranks = 0;
      Dict state{.items = {{"x", Integer(1)}}};
      if (ranks.rank() == 2) {
        // Without memory: found when the plan is made. The key twice: before.
        if (in_plan) state.items.emplace_back("y", TensorView::dense(nullptr, DType::kInt64, {4}));
      }
      AppState app{{"s", std::move(state)}};
      if (ranks.rank() == 2 && !in_plan) app.emplace_back("s", Dict{});
      Snapshot::take(storage, app, options);
    });
    EXPECT_THAT(errors, Each(HasSubstr(in_plan ? "no memory" : "twice")));
    EXPECT_THAT(errors[3], HasSubstr("rank 2: "));
    EXPECT_THAT(storage->list(""), IsEmpty());
  }
}

TEST(WorldTake, ARankThatRefuses) {
  const auto storage = fresh_storage();
  ThreadWorld world(3);
  const auto errors = world.run([&](Coordinator& ranks) {
    if (ranks.rank() == 2) refuse_take(ranks, Error(ErrorCode::kTypeMismatch, "app_state is a list"));
    Snapshot::take(storage, AppState{{"s", Dict{.items = {{"x", Integer(1)}}}}}, options_for(ranks));
  });
  EXPECT_EQ(errors[2], "app_state is a list");
  EXPECT_THAT(errors[0], HasSubstr("rank 2: app_state is a list"));
  EXPECT_THAT(errors[1], HasSubstr("rank 2: app_state is a list"));
}

TEST(WorldTake, Rank0sUrlCounts) {
  ThreadWorld world(2);
  std::vector<std::string> notices;
  world.run([&](Coordinator& ranks) {
    const std::string url = "memory://url-" + std::to_string(ranks.rank());
    const NoticeFn notice = [&](const std::string& text) { notices.push_back(text); };
    EXPECT_EQ(agree_on_url(ranks, url, notice), "memory://url-0");
  });
  ASSERT_EQ(notices.size(), 1U);
  EXPECT_THAT(notices[0], HasSubstr("memory://url-1"));
}

TEST(WorldRestore, AnyLayoutToAnyOther) {
  std::mt19937 random(5);
  const auto cut = [&random](std::int64_t size) {  // the borders of random pieces
    std::vector<std::int64_t> borders{0, size};
    for (auto i = random() % 3; i > 0; --i) {
      borders.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(size)));
    }
    std::sort(borders.begin(), borders.end());
    return borders;
  };
  const auto layout = [&](const Dims& shape) {
    std::vector<Box> boxes;
    const auto rows = cut(shape[0]);
    const auto columns = cut(shape[1]);
    for (std::size_t i = 0; i + 1 < rows.size(); ++i) {
      for (std::size_t j = 0; j + 1 < columns.size(); ++j) {
        boxes.push_back({{rows[i], columns[j]}, {rows[i + 1] - rows[i], columns[j + 1] - columns[j]}});
      }
    }
    return boxes;
  };
  for (int round = 0; round < 100; ++round) {
    const Dims shape{1 + static_cast<std::int64_t>(random() % 20), 1 + static_cast<std::int64_t>(random() % 20)};
    const auto savers = static_cast<std::int64_t>(1 + random() % 4);
    const auto readers = static_cast<std::int64_t>(1 + random() % 4);
    const auto saved = layout(shape);
    const auto wanted = layout(shape);
    const auto of = [](const std::vector<Box>& boxes, std::int64_t rank, std::int64_t size) {
      std::vector<Box> mine;
      for (std::size_t i = 0; i < boxes.size(); ++i) {
        if (static_cast<std::int64_t>(i) % size == rank) mine.push_back(boxes[i]);
      }
      return mine;
    };
    const auto storage = fresh_storage();
    ThreadWorld world(savers);
    const auto errors = world.run([&](Coordinator& ranks) {
      Dict state;
      state.items.emplace_back("t", shard_of(shape, of(saved, ranks.rank(), savers), 3));
      Snapshot::take(storage, AppState{{"s", std::move(state)}}, options_for(ranks));
    });
    ASSERT_THAT(errors, Each(IsEmpty()));
    ThreadWorld others(readers);
    const auto failures = others.run([&](Coordinator& ranks) {
      const auto boxes = of(wanted, ranks.rank(), readers);
      Dict state;
      state.items.emplace_back("t", shard_of(shape, boxes, -1'000'000));
      AppState app{{"s", std::move(state)}};
      RestoreOptions options;
      options.coordinator = shared(ranks);
      const RestoreReport report = Snapshot(storage).restore(app, options);
      EXPECT_TRUE(report.missing.empty() && report.unexpected.empty() && report.mismatched.empty());
      const auto& got = *app[0].second.get_if<Dict>()->find("t")->get_if<ShardedTensor>();
      const ShardedTensor expected = shard_of(shape, boxes, 3);
      for (std::size_t i = 0; i < boxes.size(); ++i) {
        EXPECT_EQ(elements(got.shards[i].view), elements(expected.shards[i].view));
      }
    });
    ASSERT_THAT(failures, Each(IsEmpty()));
  }
}

TEST(WorldRestore, AnErrorOfOneRankIsAnErrorOnAll) {
  const auto storage = fresh_storage();
  Snapshot::take(storage, AppState{{"s", Dict{.items = {{"x", Integer(1)}}}}});
  ThreadWorld world(3);
  std::atomic<int> loaded{0};
  const auto errors = world.run([&](Coordinator& ranks) {
    AppState app{{ranks.rank() == 1 ? "unknown" : "s", Dict{}}};
    RestoreOptions options;
    options.coordinator = shared(ranks);
    options.on_state = [&loaded](std::size_t, Value&&) { ++loaded; };
    Snapshot(storage).restore(app, options);
  });
  EXPECT_EQ(loaded, 0) << "nobody goes on alone";
  EXPECT_THAT(errors[1], HasSubstr("nothing under the key 'unknown'"));
  EXPECT_THAT(errors[0], HasSubstr("rank 1: the snapshot at"));
  EXPECT_THAT(errors[2], HasSubstr("rank 1: the snapshot at"));
}

TEST(WorldRestore, ANewRankIsToldWhatIsNotForIt) {
  const auto storage = fresh_storage();
  Snapshot::take(storage, AppState{{"s", Dict{.items = {{"x", Integer(1)}}}}});
  ThreadWorld world(2);
  std::vector<std::string> notices;
  const auto errors = world.run([&](Coordinator& ranks) {
    AppState app{{"s", Dict{.items = {{"x", Integer(5)}}}}};
    RestoreOptions options;
    options.coordinator = shared(ranks);
    options.io.on_notice = [&](const std::string& text) { notices.push_back(text); };
    const RestoreReport report = Snapshot(storage).restore(app, options);
    EXPECT_EQ(report.missing.size(), ranks.rank() == 0 ? 0U : 1U);
  });
  EXPECT_THAT(errors, Each(IsEmpty()));
  ASSERT_EQ(notices.size(), 1U);
  EXPECT_THAT(notices[0], HasSubstr("rank 1 was not among the 1 that saved the snapshot"));
  EXPECT_THAT(notices[0], HasSubstr("'s/x'"));
}

}  // namespace
}  // namespace torchsnapshot
