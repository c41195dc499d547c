// Snapshots whose metadata has an index.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "coord/thread_world.h"
#include "snapshot/metadata_index.h"
#include "storage/testing_forward.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/inspect.h"
#include "torchsnapshot/prune.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {
namespace {

using testing::Each;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

std::shared_ptr<Storage> fresh_storage() {
  static std::atomic<int> count{0};
  return open_memory_storage("index-test-" + std::to_string(count++));
}

/// Refuses to read all of the metadata.
class NoMetadata final : public ForwardingStorage {
 public:
  using ForwardingStorage::ForwardingStorage;
  std::string read_all(const std::string& location, std::uint64_t limit, std::stop_token stop) override {
    if (location == kMetadataName) throw Error(ErrorCode::kIo, "all of the metadata was asked for");
    return ForwardingStorage::read_all(location, limit, std::move(stop));
  }
};

std::vector<std::int64_t> numbers(std::int64_t first) {
  std::vector<std::int64_t> all(10);
  std::iota(all.begin(), all.end(), first);
  return all;
}

/// 700 small tensors in nested dicts, and a step.
struct State {
  std::vector<std::vector<std::int64_t>> memory;
  AppState app;

  explicit State(std::int64_t first) {
    Dict groups;
    for (int group = 0; group < 70; ++group) {
      Dict inner;
      for (int i = 0; i < 10; ++i) {
        memory.push_back(numbers(first + group * 10 + i));
        inner.items.emplace_back("t" + std::to_string(i), TensorView::dense(memory.back().data(), DType::kInt64, {10}));
      }
      groups.items.emplace_back("g" + std::to_string(group), std::move(inner));
    }
    app.emplace_back("model", std::move(groups));
    app.emplace_back("model-b", Dict{.items = {{"step", Integer(first)}}});
  }
};

TakeOptions with_index() {
  TakeOptions options;
  options.index_entries = 1;
  return options;
}

std::vector<std::int64_t> elements(const Value& value) {
  const auto& view = *value.get_if<TensorView>();
  const auto* data = reinterpret_cast<const std::int64_t*>(view.data);
  return {data, data + view.numel()};
}

std::string the_index(Storage& storage) {
  for (const std::string& location : storage.list(".torchsnapshot/")) {
    if (location.ends_with("/index")) return location;
  }
  return {};
}

TEST(MetadataIndex, ReadsWithoutTheMetadata) {
  const auto storage = fresh_storage();
  State state(5);
  Snapshot::take(storage, state.app, with_index());
  ASSERT_THAT(the_index(*storage), testing::Not(IsEmpty()));
  EXPECT_EQ(Snapshot(storage).metadata()->version.find('+'), std::string::npos);
  const auto guarded = std::make_shared<NoMetadata>(storage);
  for (const int i : {0, 9, 333, 699}) {
    const std::string path = "0/model/g" + std::to_string(i / 10) + "/t" + std::to_string(i % 10);
    EXPECT_EQ(elements(Snapshot(guarded).read_object(path)), numbers(5 + i));
  }
  const Value group = Snapshot(guarded).read_object("0/model/g7");
  ASSERT_THAT(group.get_if<Dict>()->items, SizeIs(10));
  EXPECT_EQ(elements(group.get_if<Dict>()->items[3].second), numbers(5 + 73));
  State target(0);
  const RestoreReport report = Snapshot(guarded).restore(target.app);
  EXPECT_THAT(report.missing, IsEmpty());
  EXPECT_THAT(report.unexpected, IsEmpty());
  EXPECT_EQ(target.memory, state.memory);
  EXPECT_EQ(*target.app[1].second.get_if<Dict>()->find("step")->get_if<Integer>(), Integer(5));
  AppState part{{"model-b", Dict{}}};
  Snapshot(guarded).restore(part);
  EXPECT_EQ(*part[0].second.get_if<Dict>()->find("step")->get_if<Integer>(), Integer(5));
  // What is not there is told from all of the metadata.
  try {
    static_cast<void>(Snapshot(storage).read_object("0/model/g7/t99"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kEntryNotFound);
    EXPECT_THAT(error.what(), HasSubstr("did you mean"));
  }
}

TEST(MetadataIndex, WhoWantsMostReadsTheMetadata) {
  constexpr std::int64_t kCount = 5'000;
  Dict numbers;
  for (std::int64_t i = 0; i < kCount; ++i) numbers.items.emplace_back("n" + std::to_string(i), Integer(i));
  AppState app{{"many", std::move(numbers)}, {"one", Dict{.items = {{"step", Integer(7)}}}}};
  const auto storage = fresh_storage();
  Snapshot::take(storage, app, with_index());
  const auto guarded = std::make_shared<NoMetadata>(storage);
  AppState one{{"one", Dict{}}};
  Snapshot(guarded).restore(one);
  EXPECT_EQ(*one[0].second.get_if<Dict>()->find("step")->get_if<Integer>(), Integer(7));
  EXPECT_EQ(*Snapshot(guarded).read_object("0/many/n4321").get_if<Integer>(), Integer(4321));
  AppState all{{"many", Dict{}}, {"one", Dict{}}};
  EXPECT_THROW(Snapshot(guarded).restore(all), Error);
  Snapshot(storage).restore(all);
  EXPECT_THAT(all[0].second.get_if<Dict>()->items, SizeIs(kCount));
}

TEST(MetadataIndex, OneThatIsDamagedOrOfOtherMetadataIsNotUsed) {
  const auto storage = fresh_storage();
  State state(5);
  Snapshot::take(storage, state.app, with_index());
  const std::string location = the_index(*storage);
  const std::string intact = storage->read_all(location, 1 << 30, {});
  const auto write = [&](const std::string& bytes) {
    storage->remove(std::vector<std::string>{location});
    const auto writer = storage->create(location, bytes.size(), {});
    writer->write(0, std::as_bytes(std::span(bytes)));
    writer->finish();
  };
  const auto check = [&](std::size_t notices, bool is_damaged = true) {
    std::vector<std::string> told;
    ReadOptions options;
    options.io.on_notice = [&](const std::string& notice) { told.push_back(notice); };
    for (const int i : {0, 333, 699}) {
      const std::string path = "0/model/g" + std::to_string(i / 10) + "/t" + std::to_string(i % 10);
      EXPECT_EQ(elements(Snapshot(storage).read_object(path, nullptr, options)), numbers(5 + i));
    }
    EXPECT_GE(told.size(), notices);
    const auto findings = verify(*storage).findings;
    EXPECT_THAT(findings, SizeIs(is_damaged ? 1 : 0));
    if (is_damaged) {
      EXPECT_EQ(findings[0].object, location);
    }
    EXPECT_THAT(told, Each(HasSubstr("can't be used")));
  };
  for (std::size_t at = 0; at < intact.size(); at += intact.size() / 97) {
    std::string damaged = intact;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    write(damaged);
    check(0);
  }
  for (const std::size_t size : {std::size_t{0}, std::size_t{30}, intact.size() / 2, intact.size() - 1}) {
    write(intact.substr(0, size));
    check(3);
  }
  storage->remove(std::vector<std::string>{location});
  check(3);
  // An intact one of a snapshot with other values.
  const auto other = fresh_storage();
  State changed(6);
  Snapshot::take(other, changed.app, with_index());
  write(other->read_all(the_index(*other), 1 << 30, {}));
  check(3);
  write(intact);
  check(0, false);
}

TEST(MetadataIndex, GoesWithItsSnapshot) {
  const auto storage = fresh_storage();
  State state(5);
  Snapshot::take(storage, state.app, with_index());
  const std::string first = the_index(*storage);
  EXPECT_EQ(prune(*storage, {}).removed_objects, 0U);
  Snapshot::take(storage, State(6).app, with_index());
  EXPECT_NE(the_index(*storage), first);
  EXPECT_THAT(storage->list(first), IsEmpty());
  Snapshot::take(storage, state.app, {});
  EXPECT_THAT(the_index(*storage), IsEmpty()) << "few entries need none";
  Snapshot::take(storage, state.app, with_index());
  remove_snapshot(*storage, false, false);
  EXPECT_THAT(storage->list(""), IsEmpty());
}

TEST(MetadataIndex, OfSeveralRanks) {
  const auto storage = fresh_storage();
  ThreadWorld world(3);
  const auto errors = world.run([&](Coordinator& ranks) {
    std::vector<std::int64_t> memory = numbers(100 * ranks.rank());
    ShardedTensor rows{DType::kInt64, {30}, {}, {}, nullptr};
    rows.shards.push_back({Box{{ranks.rank() * 10}, {10}}, TensorView::dense(memory.data(), DType::kInt64, {10})});
    TakeOptions options = with_index();
    options.coordinator = {std::shared_ptr<void>(), &ranks};
    options.replicated = {"s/same"};
    Snapshot::take(storage,
                   AppState{{"s", Dict{.items = {{"rows", std::move(rows)},
                                                 {"same", Integer(7)},
                                                 {"large", std::string(kMinIndexedBytes, 'x')},
                                                 {"mine", TensorView::dense(memory.data(), DType::kInt64, {10})}}}}},
                   options);
  });
  ASSERT_THAT(errors, Each(IsEmpty()));
  const Snapshot snapshot(std::make_shared<NoMetadata>(storage));
  for (std::int64_t rank = 0; rank < 3; ++rank) {
    const std::string prefix = std::to_string(rank) + "/s/";
    EXPECT_EQ(elements(snapshot.read_object(prefix + "mine")), numbers(100 * rank));
    EXPECT_EQ(*snapshot.read_object(prefix + "same").get_if<Integer>(), Integer(7));
    const auto rows = elements(snapshot.read_object(prefix + "rows"));
    for (std::size_t i = 0; i < 30; ++i) EXPECT_EQ(rows[i], static_cast<std::int64_t>(i / 10 * 100 + i % 10));
  }
  EXPECT_EQ(elements(snapshot.read_object("7/s/rows")).size(), 30U) << "a rank that did not exist";
}

}  // namespace
}  // namespace torchsnapshot
