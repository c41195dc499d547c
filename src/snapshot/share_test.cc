// Restores in which one rank reads for all, as threads over one memory storage.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "coord/thread_world.h"
#include "pipeline/testing_faulty.h"
#include "snapshot/testing_inspect.h"
#include "storage/testing_forward.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {
namespace {

using testing::AllOf;
using testing::Each;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

constexpr std::int64_t kRanks = 4;

/// The coordinator belongs to the world.
std::shared_ptr<Coordinator> shared(Coordinator& ranks) {
  return {std::shared_ptr<void>(), &ranks};
}

/// Counts the bytes of data that are read.
class MeteredStorage final : public ForwardingStorage {
 public:
  using ForwardingStorage::ForwardingStorage;
  std::unique_ptr<ObjectReader> open(const std::string& location, std::stop_token stop) override {
    return std::make_unique<Reader>(*this, inner_->open(location, std::move(stop)));
  }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  class Reader final : public ObjectReader {
   public:
    Reader(MeteredStorage& owner, std::unique_ptr<ObjectReader> inner) : owner_(owner), inner_(std::move(inner)) {}
    void read(std::uint64_t offset, std::span<std::byte> out) override {
      owner_.bytes_ += out.size();
      inner_->read(offset, out);
    }

   private:
    MeteredStorage& owner_;
    std::unique_ptr<ObjectReader> inner_;
  };

  std::atomic<std::uint64_t> bytes_{0};
};

/// A coordinator that can't hand round.
class PlainRanks final : public Coordinator {
 public:
  explicit PlainRanks(Coordinator& inner) : inner_(inner) {}
  [[nodiscard]] std::int64_t rank() const override { return inner_.rank(); }
  [[nodiscard]] std::int64_t world_size() const override { return inner_.world_size(); }
  std::string broadcast(const std::string& bytes) override { return inner_.broadcast(bytes); }
  std::vector<std::string> all_gather(const std::string& bytes, std::size_t limit) override {
    return inner_.all_gather(bytes, limit);
  }
  std::vector<std::string> gather(const std::string& bytes) override { return inner_.gather(bytes); }
  KeyValueStore& store() override { return inner_.store(); }

 private:
  Coordinator& inner_;
};

/// What a rank has: replicated tensors and an object, a tensor and an object of its own, rows of a sharded tensor.
/// Every element follows from `number`, or is zero.
struct RankState {
  std::vector<std::vector<std::int32_t>> tensors;
  std::vector<std::int32_t> own;
  std::vector<std::int32_t> rows;
  AppState app;

  RankState(std::int64_t rank, int number, std::size_t scale = 1) {
    const std::vector<std::size_t> sizes{scale * (3 << 20), scale * 700'001, 40'000, 10, 1};
    const auto value = [number](std::size_t i, std::int64_t salt) {
      return number == 0 ? 0 : static_cast<std::int32_t>(i * 7 + static_cast<std::size_t>(number + salt));
    };
    Dict model;
    for (std::size_t t = 0; t < sizes.size(); ++t) {
      tensors.emplace_back(sizes[t]);
      for (std::size_t i = 0; i < sizes[t]; ++i) tensors[t][i] = value(i, static_cast<std::int64_t>(t));
      const auto size = static_cast<std::int64_t>(sizes[t]);
      model.items.emplace_back("t" + std::to_string(t), TensorView::dense(tensors[t].data(), DType::kInt32, {size}));
    }
    model.items.emplace_back("object", opaque("common", number));
    own.resize(1000);
    for (std::size_t i = 0; i < own.size(); ++i) own[i] = value(i, rank);
    rows.resize(2 * 5000);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = value(i + static_cast<std::size_t>(rank) * rows.size(), 0);
    Dict mine;
    mine.items.emplace_back("data", TensorView::dense(own.data(), DType::kInt32, {1000}));
    mine.items.emplace_back("object", opaque("rank" + std::to_string(rank), number));
    ShardedTensor sharded{DType::kInt32, {2 * kRanks, 5000}, {}, {}, nullptr};
    sharded.shards.push_back({{{2 * rank, 0}, {2, 5000}}, TensorView::dense(rows.data(), DType::kInt32, {2, 5000})});
    mine.items.emplace_back("rows", std::move(sharded));
    app.emplace_back("model", std::move(model));
    app.emplace_back("own", std::move(mine));
  }

  static Opaque opaque(const std::string& text, int number) {
    return {.serializer = "torch_save",
            .type_name = "builtins.tuple",
            .bytes = SharedBytes::copy_of(text + std::to_string(number))};
  }

  [[nodiscard]] std::string object(std::size_t key) const {
    return std::string(app[key].second.get_if<Dict>()->find("object")->get_if<Opaque>()->bytes.view());
  }

  /// Fails the test unless it is what RankState(rank, number) has.
  void expect(std::int64_t rank, int number, std::size_t scale = 1) const {
    const RankState wanted(rank, number, scale);
    for (std::size_t t = 0; t < tensors.size(); ++t) EXPECT_TRUE(tensors[t] == wanted.tensors[t]) << "tensor " << t;
    EXPECT_EQ(own, wanted.own);
    EXPECT_EQ(rows, wanted.rows);
    EXPECT_EQ(object(0), wanted.object(0));
    EXPECT_EQ(object(1), wanted.object(1));
  }
};

std::shared_ptr<Storage> taken(int number, std::size_t scale = 1) {
  const auto storage = new_memory_storage();
  ThreadWorld world(kRanks);
  const auto errors = world.run([&](Coordinator& ranks) {
    TakeOptions options;
    options.coordinator = shared(ranks);
    options.replicated = {"model/**"};
    Snapshot::take(storage, RankState(ranks.rank(), number, scale).app, options);
  });
  EXPECT_THAT(errors, Each(IsEmpty()));
  return storage;
}

RestoreOptions sharing(Coordinator& ranks) {
  RestoreOptions options;
  options.coordinator = shared(ranks);
  options.replicated_read = ReplicatedRead::kShare;
  options.io.io_concurrency = 3;
  return options;
}

TEST(SharedRestore, WhatAllNeedIsReadOnceByAllTogether) {
  const auto storage = taken(7, 3);
  const std::uint64_t common = 4 * (3 * ((3 << 20) + 700'001) + 40'011);
  for (const auto mode : {ReplicatedRead::kShare, ReplicatedRead::kDirect, ReplicatedRead::kAuto}) {
    ThreadWorld world(kRanks);
    std::vector<std::uint64_t> bytes(kRanks);
    const auto errors = world.run([&](Coordinator& ranks) {
      const auto metered = std::make_shared<MeteredStorage>(storage);
      RankState target(ranks.rank(), 0, 3);
      RestoreOptions options = sharing(ranks);
      options.replicated_read = mode;
      Progress last;
      options.io.on_progress = [&last](const Progress& progress) { last = progress; };
      const RestoreReport report = Snapshot(metered).restore(target.app, options);
      EXPECT_TRUE(report.missing.empty() && report.unexpected.empty() && report.corrupt.empty());
      target.expect(ranks.rank(), 7, 3);
      EXPECT_GE(last.bytes_done, common);
      bytes[static_cast<std::size_t>(ranks.rank())] = metered->bytes();
    });
    EXPECT_THAT(errors, Each(IsEmpty()));
    for (const std::uint64_t one : bytes) {
      if (mode == ReplicatedRead::kShare) {
        // A quarter of what is common, its own rows, and the metadata of all.
        EXPECT_NEAR(static_cast<double>(one), static_cast<double>(common) / kRanks, 5.5e6);
      } else {
        EXPECT_GE(one, common);  // memory is not remote
      }
    }
    if (mode == ReplicatedRead::kShare) {
      EXPECT_GE(world.handed_bytes(), common);
      EXPECT_LT(world.handed_bytes(), common + (8 << 20));
    } else {
      EXPECT_EQ(world.handed_bytes(), 0U);
      EXPECT_EQ(world.exchanges(), 2);
    }
  }
}

TEST(SharedRestore, AnyTargetsAndOptions) {
  const auto storage = taken(9);
  std::mt19937 shared_random(3);
  for (int round = 0; round < 25; ++round) {
    const auto seed = static_cast<unsigned>(shared_random());
    ThreadWorld world(kRanks);
    const auto errors = world.run([&](Coordinator& ranks) {
      std::mt19937 common(seed);
      std::mt19937 random(seed + static_cast<unsigned>(ranks.rank()));
      RankState target(ranks.rank(), 0);
      RestoreOptions options = sharing(ranks);
      options.io.memory_budget_bytes = std::uint64_t{1} << (22 + random() % 8);
      options.io.io_concurrency = 1 + static_cast<std::uint32_t>(random() % 5);
      options.io.checksums = random() % 8 != 0;
      if (common() % 4 == 0) options.replicated_read = static_cast<ReplicatedRead>(random() % 3);
      auto* model = target.app[0].second.get_if<Dict>();
      // Elsewhere than in one piece of memory; and one that the target has not.
      std::vector<std::int32_t> strided(2 * target.tensors[1].size());
      const bool is_strided = random() % 2 == 0;
      if (is_strided) {
        TensorView view = TensorView::dense(strided.data(), DType::kInt32, {std::int64_t(target.tensors[1].size())});
        view.strides = {2};
        model->items[1].second = view;
      }
      const bool is_made = random() % 2 == 0;
      if (is_made) model->items.erase(model->items.begin());
      const bool has_model = common() % 4 != 0 || random() % 2 == 0;
      if (!has_model) target.app.erase(target.app.begin());
      Snapshot(storage).restore(target.app, options);
      const RankState wanted(ranks.rank(), 9);
      EXPECT_EQ(target.own, wanted.own);
      EXPECT_EQ(target.rows, wanted.rows);
      if (!has_model) return;
      EXPECT_EQ(target.object(0), wanted.object(0));
      EXPECT_EQ(target.object(1), wanted.object(1));
      if (is_strided) {
        for (std::size_t i = 0; i < target.tensors[1].size(); ++i) target.tensors[1][i] = strided[2 * i];
      }
      if (is_made) {
        const auto* view = target.app[0].second.get_if<Dict>()->find("t0")->get_if<TensorView>();
        std::memcpy(target.tensors[0].data(), view->data, view->nbytes());
      }
      for (std::size_t t = 0; t < wanted.tensors.size(); ++t) EXPECT_TRUE(target.tensors[t] == wanted.tensors[t]) << t;
    });
    ASSERT_THAT(errors, Each(IsEmpty())) << "seed " << seed;
  }
}

TEST(SharedRestore, ATensorOfShardsThatAllWantWholeIsReadOnce) {
  const auto storage = taken(4);
  ThreadWorld world(kRanks);
  const auto errors = world.run([&](Coordinator& ranks) {
    std::vector<std::int32_t> whole(2 * kRanks * 5000);
    Dict own;
    own.items.emplace_back("rows", TensorView::dense(whole.data(), DType::kInt32, {2 * kRanks, 5000}));
    AppState app;
    app.emplace_back("own", std::move(own));
    RestoreOptions options = sharing(ranks);
    options.strict = false;
    Snapshot(storage).restore(app, options);
    for (std::size_t i = 0; i < whole.size(); ++i) ASSERT_EQ(whole[i], static_cast<std::int32_t>(i * 7 + 4));
  });
  EXPECT_THAT(errors, Each(IsEmpty()));
  EXPECT_GE(world.handed_bytes(), 2U * kRanks * 5000 * 4);
}

TEST(SharedRestore, AFaultOfAnyRankAtAnyCallIsAnErrorOnAll) {
  const auto storage = taken(5);
  std::int64_t calls = 0;
  {
    ThreadWorld world(kRanks);
    const auto errors = world.run([&](Coordinator& ranks) {
      const auto faulty = std::make_shared<FaultyStorage>(storage, FaultyStorage::kNever);
      RankState target(ranks.rank(), 0);
      Snapshot(faulty).restore(target.app, sharing(ranks));
      if (ranks.rank() == 1) calls = faulty->calls();
    });
    ASSERT_THAT(errors, Each(IsEmpty()));
  }
  ASSERT_GT(calls, 5);
  for (std::int64_t fail_at = 1; fail_at < calls; ++fail_at) {  // the first looks for an index; it may fail
    ThreadWorld world(kRanks);
    const auto errors = world.run([&](Coordinator& ranks) {
      const auto mine = std::make_shared<FaultyStorage>(storage, ranks.rank() == 1 ? fail_at : FaultyStorage::kNever);
      RankState target(ranks.rank(), 0);
      Snapshot(mine).restore(target.app, sharing(ranks));
    });
    for (std::size_t rank = 0; rank < errors.size(); ++rank) {
      EXPECT_THAT(errors[rank], HasSubstr("injected")) << "call " << fail_at << ", rank " << rank;
      if (rank != 1) {
        EXPECT_THAT(errors[rank], StartsWith("rank 1: "));
      }
    }
  }
}

TEST(SharedRestore, WhatOneRanksProgramThrowsIsAnErrorOnAll) {
  const auto storage = taken(5);
  for (const bool in_poll : {false, true}) {
    ThreadWorld world(kRanks);
    const auto errors = world.run([&](Coordinator& ranks) {
      RankState target(ranks.rank(), 0);
      RestoreOptions options = sharing(ranks);
      if (ranks.rank() == 2 && !in_poll) {
        options.decode = [](const std::string&, const std::string&, const Value&) -> std::shared_ptr<void> {
          throw Error(ErrorCode::kUnsupported, "can't be decoded");
        };
      }
      std::stop_source stop;
      if (ranks.rank() == 2 && in_poll) {
        stop.request_stop();
        options.io.stop = stop.get_token();
      }
      Snapshot(storage).restore(target.app, options);
    });
    EXPECT_THAT(errors, Each(HasSubstr(in_poll ? "cancelled" : "can't be decoded")));
  }
}

TEST(SharedRestore, DamageFoundByOneRankIsKnownToAll) {
  const auto storage = taken(5);
  // The largest object has rows of the first tensor.
  std::string victim;
  std::string blob;
  for (const std::string& location : objects_of(*storage)) {
    const std::string content = storage->read_all(location, UINT64_MAX, {});
    if (content == "common5") blob = location;
    if (victim.empty() || content.size() > storage->read_all(victim, UINT64_MAX, {}).size()) victim = location;
  }
  ASSERT_FALSE(blob.empty());
  change_object(*storage, victim, [](std::string& content) { content[1000] ^= 1; });
  {
    ThreadWorld world(kRanks);
    const auto errors = world.run([&](Coordinator& ranks) {
      RankState target(ranks.rank(), 0);
      Snapshot(storage).restore(target.app, sharing(ranks));
    });
    EXPECT_THAT(errors, Each(AllOf(HasSubstr("changed since it was saved"), HasSubstr(victim))));
  }
  change_object(*storage, blob, [](std::string& content) { content[0] ^= 1; });
  ThreadWorld world(kRanks);
  std::vector<std::vector<Corruption>> found(kRanks);
  const auto errors = world.run([&](Coordinator& ranks) {
    RankState target(ranks.rank(), 0);
    target.app[0].second.get_if<Dict>()->items.back().second = RankState::opaque("kept", 0);
    RestoreOptions options = sharing(ranks);
    options.keep_going = true;
    found[static_cast<std::size_t>(ranks.rank())] = Snapshot(storage).restore(target.app, options).corrupt;
    EXPECT_EQ(target.object(0), "kept0");
    EXPECT_EQ(target.object(1), "rank" + std::to_string(ranks.rank()) + "5");
  });
  EXPECT_THAT(errors, Each(IsEmpty()));
  ASSERT_EQ(found[0].size(), 2U);
  EXPECT_THAT(found, Each(found[0]));
  EXPECT_FALSE(found[0][0].paths.empty());
  EXPECT_FALSE(found[0][1].paths.empty());
}

TEST(SharedRestore, WhereItCantBeEachReadsForItselfAndIsTold) {
  const auto storage = taken(5);
  for (const bool is_plain : {true, false}) {
    ThreadWorld world(kRanks);
    std::mutex mutex;
    std::vector<std::string> notices;
    const auto errors = world.run([&](Coordinator& ranks) {
      PlainRanks plain(ranks);
      RankState target(ranks.rank(), 0);
      RestoreOptions options = sharing(ranks);
      if (is_plain) options.coordinator = shared(plain);
      if (!is_plain && ranks.rank() == 3) options.replicated_read = ReplicatedRead::kDirect;
      options.io.on_notice = [&](const std::string& notice) {
        const std::lock_guard lock(mutex);
        notices.push_back(notice);
      };
      Snapshot(storage).restore(target.app, options);
      target.expect(ranks.rank(), 5);
    });
    EXPECT_THAT(errors, Each(IsEmpty()));
    EXPECT_EQ(notices.size(), is_plain ? 4U : 3U);
    EXPECT_THAT(notices, Each(HasSubstr(is_plain ? "can't hand bytes round" : "not all ranks have asked")));
    EXPECT_EQ(world.handed_bytes(), 0U);
  }
}

TEST(SharedRestore, ARankThatRefuses) {
  const auto storage = taken(5);
  ThreadWorld world(kRanks);
  const auto errors = world.run([&](Coordinator& ranks) {
    if (ranks.rank() == 2) refuse_restore(ranks, Error(ErrorCode::kTypeMismatch, "no state"));
    RankState target(ranks.rank(), 0);
    try {
      Snapshot(storage).restore(target.app, sharing(ranks));
    } catch (const Error&) {
      target.expect(ranks.rank(), 0);  // nothing has been changed
      throw;
    }
  });
  EXPECT_THAT(errors, Each(HasSubstr("no state")));
}

}  // namespace
}  // namespace torchsnapshot
