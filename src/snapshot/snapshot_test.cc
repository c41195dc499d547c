#include "torchsnapshot/snapshot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>
#include <atomic>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "pipeline/testing_faulty.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

std::shared_ptr<Storage> fresh_storage() {
  static std::atomic<int> count{0};
  return open_memory_storage("snapshot-test-" + std::to_string(count++));
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

/// A small state of every kind of leaf, whose numbers depend on `seed`.
struct State {
  std::vector<float> weight;
  std::vector<std::int64_t> steps;
  AppState app;

  explicit State(int seed) : weight(600), steps(3) {
    std::iota(weight.begin(), weight.end(), static_cast<float>(seed));
    std::iota(steps.begin(), steps.end(), seed);
    Dict model;
    model.ordered = true;
    model.items.emplace_back("w", TensorView::dense(weight.data(), DType::kFloat32, {20, 30}));
    model.items.emplace_back("tied", TensorView::dense(weight.data(), DType::kFloat32, {20, 30}));
    Dict progress;
    progress.items.emplace_back("epoch", Integer(seed));
    progress.items.emplace_back("loss", 0.25 * seed);
    progress.items.emplace_back("name", std::string("run ") + std::to_string(seed));
    progress.items.emplace_back("raw", Bytes{std::string("\0\xff", 2)});
    progress.items.emplace_back("done", seed % 2 == 0);
    progress.items.emplace_back(Integer(7), TensorView::dense(steps.data(), DType::kInt64, {3}));
    progress.items.emplace_back("list", List{.items = {Integer(1), List{}, Dict{}}});
    progress.items.emplace_back("object", Opaque{.serializer = "torch_save",
                                                 .type_name = "builtins.tuple",
                                                 .bytes = SharedBytes::copy_of("pickled" + std::to_string(seed))});
    app.emplace_back("model", std::move(model));
    app.emplace_back("pro/gress", std::move(progress));
  }

  [[nodiscard]] const Value& at(std::size_t key, const Key& name) const {
    return *app[key].second.get_if<Dict>()->find(name);
  }
  [[nodiscard]] std::string object() const { return std::string(at(1, "object").get_if<Opaque>()->bytes.view()); }
};

TEST(Snapshot, RestoresInPlace) {
  const auto storage = fresh_storage();
  const State saved(5);
  Snapshot::take(storage, saved.app);
  State target(90);
  const float* memory = target.weight.data();
  const RestoreReport report = Snapshot(storage).restore(target.app);
  EXPECT_THAT(report.missing, IsEmpty());
  EXPECT_THAT(report.unexpected, IsEmpty());
  EXPECT_THAT(report.mismatched, IsEmpty());
  EXPECT_EQ(target.weight, saved.weight);
  EXPECT_EQ(target.steps, saved.steps);
  EXPECT_EQ(target.at(0, "w").get_if<TensorView>()->data, reinterpret_cast<const std::byte*>(memory));
  EXPECT_EQ(*target.at(1, "epoch").get_if<Integer>(), Integer(5));
  EXPECT_EQ(*target.at(1, "loss").get_if<double>(), 1.25);
  EXPECT_EQ(*target.at(1, "name").get_if<std::string>(), "run 5");
  EXPECT_EQ(target.at(1, "raw").get_if<Bytes>()->data, std::string("\0\xff", 2));
  EXPECT_EQ(*target.at(1, "done").get_if<bool>(), false);
  EXPECT_EQ(target.object(), "pickled5");
  EXPECT_EQ(target.at(1, "list").get_if<List>()->items.size(), 3U);
}

TEST(Snapshot, TiedWeightsAreStoredOnce) {
  const auto storage = fresh_storage();
  const Snapshot snapshot = Snapshot::take(storage, State(1).app);
  const Manifest& manifest = snapshot.metadata()->manifest;
  EXPECT_EQ(std::get<TensorEntry>(*manifest.find("0/model/w")), std::get<TensorEntry>(*manifest.find("0/model/tied")));
}

TEST(Snapshot, WorksOnAFileSystem) {
  const std::string folder = testing::TempDir() + "/snapshot-test-" + std::to_string(::getpid());
  const State saved(3);
  Snapshot::take(folder + "/a/b", saved.app);
  State target(0);
  Snapshot("fs://" + folder + "/a/b").restore(target.app);
  EXPECT_EQ(target.weight, saved.weight);
  std::system(("rm -rf '" + folder + "'").c_str());
}

TEST(Snapshot, DeliversSavedValuesWhereTheTargetDiffers) {
  const auto storage = fresh_storage();
  const State saved(5);
  Snapshot::take(storage, saved.app);
  std::vector<float> other(10, -1.0F);
  Dict model;
  model.items.emplace_back("w", TensorView::dense(other.data(), DType::kFloat32, {10}));
  model.items.emplace_back("extra", Integer(1));
  AppState target{{"model", std::move(model)}};
  const RestoreReport report = Snapshot(storage).restore(target);
  EXPECT_THAT(report.mismatched, ElementsAre("model/w"));
  EXPECT_THAT(report.missing, ElementsAre("model/extra"));
  EXPECT_THAT(report.unexpected, ElementsAre("model/tied"));
  EXPECT_EQ(other, std::vector<float>(10, -1.0F));
  const auto* fresh = target[0].second.get_if<Dict>()->find("w")->get_if<TensorView>();
  ASSERT_NE(fresh, nullptr);
  EXPECT_EQ(std::memcmp(fresh->data, saved.weight.data(), 600 * sizeof(float)), 0);
}

TEST(Snapshot, ExactKeysRefuseAMismatchBeforeAnythingIsRead) {
  const auto storage = fresh_storage();
  Snapshot::take(storage, State(5).app);
  State target(9);
  target.app[0].second.get_if<Dict>()->find("tied")->get_if<TensorView>()->dtype = DType::kInt32;
  RestoreOptions options;
  options.exact_keys = {"model"};
  const std::string error = error_of([&] { (void)Snapshot(storage).restore(target.app, options); });
  EXPECT_THAT(error, HasSubstr("MISMATCH"));
  EXPECT_THAT(error, HasSubstr("'model/tied': saved torch.float32 [20, 30], target torch.int32 [20, 30]"));
  EXPECT_EQ(target.weight, State(9).weight);
  EXPECT_EQ(target.steps, State(9).steps);
}

TEST(Snapshot, AKeyThatIsNotThere) {
  const auto storage = fresh_storage();
  Snapshot::take(storage, State(5).app);
  AppState target{{"modle", Dict{}}};
  EXPECT_THAT(error_of([&] { (void)Snapshot(storage).restore(target); }), HasSubstr("'model', 'pro/gress'"));
  RestoreOptions options;
  options.strict = false;
  EXPECT_THAT(Snapshot(storage).restore(target, options).missing, ElementsAre("modle"));
}

TEST(Snapshot, ReadsOneObject) {
  const auto storage = fresh_storage();
  const State saved(5);
  const Snapshot snapshot = Snapshot::take(storage, saved.app);
  EXPECT_EQ(*snapshot.read_object("0/pro%2Fgress/epoch").get_if<Integer>(), Integer(5));
  std::vector<float> memory(600);
  const Value target = TensorView::dense(memory.data(), DType::kFloat32, {20, 30});
  (void)snapshot.read_object("0/model/w", &target);
  EXPECT_EQ(memory, saved.weight);
  EXPECT_EQ(snapshot.read_object("0/model").get_if<Dict>()->items.size(), 2U);
  EXPECT_THAT(error_of([&] { (void)snapshot.read_object("0/model/ww"); }),
              testing::AllOf(HasSubstr("ENTRY_NOT_FOUND"), HasSubstr("did you mean '0/model/w'")));
  EXPECT_THAT(error_of([&] { (void)snapshot.read_object("model/w"); }), HasSubstr("does not begin with a rank"));
  const Value narrow = TensorView::dense(memory.data(), DType::kFloat32, {600});
  EXPECT_THAT(error_of([&] { (void)snapshot.read_object("0/model/w", &narrow); }), HasSubstr("MISMATCH"));
}

TEST(Snapshot, ATakeOverAnotherReplacesItAndItsData) {
  const auto storage = fresh_storage();
  Snapshot::take(storage, State(1).app);
  const auto before = storage->list("");
  Snapshot::take(storage, State(2).app);
  const auto after = storage->list("");
  EXPECT_EQ(after.size(), before.size());
  for (const std::string& location : before) {
    if (location == kMetadataName) continue;
    EXPECT_THAT(after, Not(testing::Contains(location)));
  }
  State target(0);
  Snapshot(storage).restore(target.app);
  EXPECT_EQ(target.weight, State(2).weight);
}

TEST(Snapshot, ForeignFilesStay) {
  const auto storage = fresh_storage();
  storage->publish("notes.txt", "mine");
  Snapshot::take(storage, State(1).app);
  Snapshot::take(storage, State(2).app);
  EXPECT_EQ(storage->read_all("notes.txt", 100, {}), "mine");
}

/// Whatever call fails: the old snapshot or the new one, whole; and nothing of the failed take stays behind.
TEST(Snapshot, ATakeThatFailsLeavesTheOldOne) {
  for (std::int64_t fail_at = 0;; ++fail_at) {
    const auto place = fresh_storage();
    const State first(1);
    Snapshot::take(place, first.app);
    const auto before = place->list("");
    const auto faulty = std::make_shared<FaultyStorage>(place, fail_at);
    const State second(2);
    const std::string error = error_of([&] { (void)Snapshot::take(faulty, second.app); });
    State target(0);
    Snapshot(place).restore(target.app);
    if (error == "no error") {
      EXPECT_EQ(target.weight, second.weight);
      if (faulty->calls() <= fail_at) {
        EXPECT_GT(fail_at, 6);
        break;
      }
      continue;  // only the removal of the old data failed
    }
    EXPECT_THAT(error, HasSubstr("injected"));
    EXPECT_EQ(target.weight, first.weight) << fail_at;
    EXPECT_EQ(place->list(""), before) << fail_at;
  }
}

TEST(Snapshot, NotASnapshot) {
  const auto storage = fresh_storage();
  AppState target{{"model", Dict{}}};
  EXPECT_THAT(error_of([&] { (void)Snapshot(storage).restore(target); }),
              HasSubstr("NOT_A_SNAPSHOT Failed to read .snapshot_metadata. Ensure path to snapshot is correct"));
  storage->publish(std::string(kMetadataName), "{\"version\": ");
  EXPECT_THAT(error_of([&] { (void)Snapshot(storage).restore(target); }), HasSubstr("NOT_A_SNAPSHOT"));
}

TEST(Snapshot, ADamagedMetadataIsReplacedAndItsDataLeft) {
  const auto storage = fresh_storage();
  storage->publish(std::string(kMetadataName), "{\"version\": ");
  storage->publish("data/old/0-0", "?");
  std::vector<std::string> notices;
  TakeOptions options;
  options.io.on_notice = [&](const std::string& notice) { notices.push_back(notice); };
  Snapshot::take(storage, State(1).app, options);
  ASSERT_EQ(notices.size(), 1U);
  EXPECT_THAT(notices[0], HasSubstr("left in place"));
  EXPECT_THAT(storage->list("data/old/"), ElementsAre("data/old/0-0"));
}

TEST(Snapshot, CancelledTakesLeaveNothing) {
  const auto storage = fresh_storage();
  std::stop_source stop;
  stop.request_stop();
  TakeOptions options;
  options.io.stop = stop.get_token();
  EXPECT_THAT(error_of([&] { (void)Snapshot::take(storage, State(1).app, options); }), HasSubstr("CANCELLED"));
  EXPECT_THAT(storage->list(""), IsEmpty());
}

TEST(Snapshot, WhatCanNotBeDecodedLeavesTheTargetAlone) {
  const auto storage = fresh_storage();
  Snapshot::take(storage, State(4).app);
  State target(0);
  RestoreOptions options;
  options.decode = [&](const std::string& path, const std::string& location,
                       const Value& leaf) -> std::shared_ptr<void> {
    EXPECT_EQ(path, "pro%2Fgress/object");
    EXPECT_THAT(location, testing::StartsWith("data/"));
    EXPECT_EQ(leaf.get_if<Opaque>()->bytes.view(), "pickled4");
    throw Error(ErrorCode::kCorrupt, "no pickle");
  };
  EXPECT_THAT(error_of([&] { (void)Snapshot(storage).restore(target.app, options); }), HasSubstr("no pickle"));
  EXPECT_EQ(target.weight, State(0).weight);

  const auto decoded = std::make_shared<int>(7);
  options.decode = [&](const std::string&, const std::string&, const Value&) { return decoded; };
  Snapshot(storage).restore(target.app, options);
  EXPECT_EQ(target.at(1, "object").get_if<Opaque>()->owner, decoded);
  EXPECT_EQ(target.weight, State(4).weight);
}

TEST(Snapshot, ATargetWhoseElementsShareMemoryIsNotWrittenTo) {
  const auto storage = fresh_storage();
  const State saved(4);
  Snapshot::take(storage, saved.app);
  std::vector<float> row(30, -1.0F);
  TensorView expanded = TensorView::dense(row.data(), DType::kFloat32, {20, 30});
  expanded.strides = {0, 1};
  AppState target{{"model", Dict{.items = {{"w", expanded}}}}};
  Snapshot(storage).restore(target);
  EXPECT_EQ(row, std::vector<float>(30, -1.0F));
  const auto* fresh = target[0].second.get_if<Dict>()->find("w")->get_if<TensorView>();
  EXPECT_EQ(std::memcmp(fresh->data, saved.weight.data(), 600 * sizeof(float)), 0);

  target = AppState{{"model", Dict{.items = {{"w", expanded}}}}};
  RestoreOptions options;
  options.exact_keys = {"model"};
  EXPECT_THAT(error_of([&] { (void)Snapshot(storage).restore(target, options); }), HasSubstr("share memory"));
}

TEST(Snapshot, ShardedTensorsGoIntoAnyTargetAndAreLeftOutWithoutOne) {
  const auto storage = fresh_storage();
  std::vector<float> memory(60);
  std::iota(memory.begin(), memory.end(), 0.0F);
  ShardedTensor saved{.dtype = DType::kFloat32, .shape = {10, 6}, .shards = {}, .layout = {}, .owner = nullptr};
  saved.shards.push_back({Box{{0, 0}, {4, 6}}, TensorView::dense(memory.data(), DType::kFloat32, {4, 6})});
  saved.shards.push_back({Box{{4, 0}, {6, 6}}, TensorView::dense(memory.data() + 24, DType::kFloat32, {6, 6})});
  Snapshot::take(storage, {{"s", Dict{.items = {{"w", saved}, {"n", Integer(1)}}}}});

  std::vector<float> whole(60);
  AppState plain{{"s", Dict{.items = {{"w", TensorView::dense(whole.data(), DType::kFloat32, {10, 6})}}}}};
  Snapshot(storage).restore(plain);
  EXPECT_EQ(whole, memory);

  std::vector<float> column(10);
  ShardedTensor by_column{.dtype = DType::kFloat32, .shape = {10, 6}, .shards = {}, .layout = {}, .owner = nullptr};
  by_column.shards.push_back({Box{{0, 3}, {10, 1}}, TensorView::dense(column.data(), DType::kFloat32, {10, 1})});
  AppState columns{{"s", Dict{.items = {{"w", by_column}}}}};
  Snapshot(storage).restore(columns);
  for (std::size_t i = 0; i < 10; ++i) EXPECT_EQ(column[i], static_cast<float>(6 * i + 3));

  AppState without{{"s", Dict{}}};
  const RestoreReport report = Snapshot(storage).restore(without);
  EXPECT_THAT(report.unexpected, ElementsAre("s/w", "s/n"));
  EXPECT_EQ(without[0].second.get_if<Dict>()->find("w"), nullptr);
  EXPECT_NE(without[0].second.get_if<Dict>()->find("n"), nullptr);
  const Value all = Snapshot(storage).read_object("0/s/w");
  EXPECT_EQ(std::memcmp(all.get_if<TensorView>()->data, memory.data(), 240), 0);
}

TEST(Snapshot, StatesAreDeliveredInTheOrderOfTheAppState) {
  const auto storage = fresh_storage();
  Snapshot::take(storage, State(4).app);
  State target(0);
  std::swap(target.app[0], target.app[1]);
  std::vector<std::size_t> order;
  RestoreOptions options;
  options.on_state = [&](std::size_t index, Value&& state) {
    order.push_back(index);
    EXPECT_NE(state.get_if<Dict>(), nullptr);
  };
  Snapshot(storage).restore(target.app, options);
  EXPECT_THAT(order, ElementsAre(0U, 1U));
  EXPECT_EQ(target.weight, State(4).weight);
}

}  // namespace
}  // namespace torchsnapshot
