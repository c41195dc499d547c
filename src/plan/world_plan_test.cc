#include "plan/world_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <set>

#include "plan/write_plan.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

ReplicatedLeaf leaf(std::string path, std::string kind = "object", std::string content = "") {
  ReplicatedLeaf made;
  made.path = std::move(path);
  made.kind = std::move(kind);
  made.content = std::move(content);
  made.bytes = 100;
  return made;
}

TEST(WorldPlan, ListsAndSummariesSurviveTheWay) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<ReplicatedLeaf> leaves;
    for (auto count = random() % 10; count > 0; --count) {
      leaves.push_back(leaf(std::string(random() % 20, 'p'), "k\0k", "c"));
      leaves.back().bytes = random();
      leaves.back().rows = static_cast<std::int64_t>(random());
      leaves.back().same_as = static_cast<std::int64_t>(random() % 3) - 1;
    }
    const std::string bytes = serialize(leaves);
    EXPECT_EQ(bytes.size(), serialized_size(leaves));
    EXPECT_EQ(parse_leaves(bytes), leaves);
    ShareSummary summary;
    for (auto count = random() % (kMaxToldGroups + 1); count > 0; --count) {
      summary.groups.push_back({random(), {random(), random()}});
    }
    const std::string told = serialize(summary);
    EXPECT_LE(told.size(), kMaxSummaryBytes);
    EXPECT_EQ(parse_summary(told), summary);
    if (!bytes.empty()) {
      EXPECT_THROW(parse_leaves(std::string_view(bytes).substr(0, bytes.size() - 1)), Error);
    }
    EXPECT_THROW(parse_summary(std::string_view(told).substr(0, told.size() - 1)), Error);
    EXPECT_THROW(parse_summary(told + "x"), Error);
  }
}

TEST(WorldPlan, CommonLeavesAreThoseOfAll) {
  const CommonLeaves common = common_leaves({{leaf("a"), leaf("b"), leaf("c", "x"), leaf("d", "p", "1")},
                                             {leaf("d", "p", "2"), leaf("c", "y"), leaf("a")},
                                             {leaf("a"), leaf("b"), leaf("c", "x"), leaf("d", "p", "1")}});
  ASSERT_EQ(common.leaves.size(), 2U);
  EXPECT_EQ(common.leaves[0].path, "a");
  EXPECT_EQ(common.leaves[1], leaf("d", "p", "1")) << "as rank 0 has it";
  EXPECT_THAT(common.other_value, ElementsAre("d"));
  EXPECT_THAT(common.other_kind, ElementsAre("c"));
}

TEST(WorldPlan, IntersectionOfRandomListsAgainstSets) {
  std::mt19937 random(9);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::vector<ReplicatedLeaf>> lists(1 + random() % 5);
    std::vector<std::set<std::string>> sets(lists.size());
    for (std::size_t rank = 0; rank < lists.size(); ++rank) {
      for (int i = 0; i < 12; ++i) {
        if (random() % 4 == 0) continue;
        const std::string path = "p" + std::to_string(i);
        lists[rank].push_back(leaf(path));
        sets[rank].insert(path);
      }
    }
    std::set<std::string> expected;
    for (const std::string& path : sets[0]) {
      bool in_all = true;
      for (const auto& set : sets) in_all = in_all && set.contains(path);
      if (in_all) expected.insert(path);
    }
    std::set<std::string> got;
    for (const ReplicatedLeaf& found : common_leaves(lists).leaves) got.insert(found.path);
    EXPECT_EQ(got, expected);
  }
}

TEST(WorldPlan, SharedMemoryIsSharedOnlyIfItIsOnAllRanks) {
  ReplicatedLeaf tied = leaf("b");
  tied.same_as = 0;
  EXPECT_EQ(common_leaves({{leaf("a"), tied}, {leaf("a"), tied}}).leaves[1].same_as, 0);
  EXPECT_EQ(common_leaves({{leaf("a"), tied}, {leaf("a"), leaf("b")}}).leaves[1].same_as, -1);
  EXPECT_EQ(common_leaves({{leaf("a"), tied}, {tied}}).leaves[0].same_as, -1);
}

/// What all ranks write of a state that they have alike, by path and first row.
TEST(WorldPlan, EveryByteIsWrittenOnceByTheRanksTogether) {
  std::mt19937 random(21);
  for (int round = 0; round < 100; ++round) {
    const auto world_size = static_cast<std::int64_t>(1 + random() % 6);
    std::vector<std::unique_ptr<std::vector<std::byte>>> memory;
    Dict dict;
    for (auto count = random() % 12; count > 0; --count) {
      const Dims shape{static_cast<std::int64_t>(random() % 9'000), static_cast<std::int64_t>(1 + random() % 1'000)};
      const std::size_t bytes = static_cast<std::size_t>(element_count(shape));
      memory.push_back(std::make_unique<std::vector<std::byte>>(bytes));
      dict.items.emplace_back("t" + std::to_string(count),
                              TensorView::dense(memory.back()->data(), DType::kUInt8, shape));
    }
    dict.items.emplace_back("n", Integer(1));
    const Value root(dict);
    FlatState state;
    flatten(root, "s", state);
    const LocalShares shares = find_shares(state, {"s/*"});
    EXPECT_EQ(shares.replicated.size(), state.leaves.size());
    std::vector<Manifest> parts;
    std::uint64_t written = 0;
    for (std::int64_t rank = 0; rank < world_size; ++rank) {
      const DividedState part = divide(state, shares, shares.replicated, {}, rank, world_size);
      WritePlanOptions options;
      options.take_id = "id";
      options.rank = rank;
      options.world_size = world_size;
      WritePlan plan = plan_write(part.state, options);
      for (const WriteObject& object : plan.objects) {
        for (const WriteItem& item : object.items) written += item.size;
      }
      parts.push_back(std::move(plan.manifest));
    }
    std::uint64_t expected = 0;
    for (const auto& part : memory) expected += part->size();
    EXPECT_EQ(written, expected);
    SnapshotMetadata metadata{.version = "0", .world_size = world_size, .manifest = {}};
    metadata.manifest = merge_manifests(parts, shares.replicated);
    const std::string text = write_metadata(metadata);
    EXPECT_EQ(parse_metadata(text).manifest, metadata.manifest) << "chunks tile their tensors";
    for (const FlatLeaf& one : state.leaves) {
      const Entry* entry = metadata.manifest.find("0/" + one.path);
      ASSERT_NE(entry, nullptr) << one.path;
      EXPECT_TRUE(is_replicated(*entry)) << one.path;
    }
  }
}

TEST(WorldPlan, ASampleTellsWhatWentAstray) {
  std::vector<float> memory(10'000, 1.0F);
  const auto content = [&memory] {
    const Value root(Dict{.items = {{"x", TensorView::dense(memory.data(), DType::kFloat32, {10'000})}}});
    FlatState state;
    flatten(root, "s", state);
    return find_shares(state, {"*"}).replicated.at(0).content;
  };
  const std::string before = content();
  EXPECT_EQ(content(), before);
  for (const std::size_t changed : {std::size_t{0}, std::size_t{5000}, std::size_t{9999}}) {
    memory[changed] = 2.0F;
    EXPECT_NE(content(), before);
    memory[changed] = 1.0F;
  }
}

}  // namespace
}  // namespace torchsnapshot
