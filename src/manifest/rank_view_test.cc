#include "manifest/rank_view.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "core/path_codec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "manifest/test_support.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using testing::ElementsAre;
using testing::UnorderedElementsAre;

ShardEntry shard(std::int64_t row, std::string location) {
  return {Box{{row}, {2}}, {std::move(location), "buffer_protocol", DType::kInt8, {2}, false, std::nullopt}};
}

Entry sharded(std::vector<ShardEntry> shards) {
  return ShardedTensorEntry{std::move(shards), {}};
}

Entry leaf(bool replicated) {
  return PrimitiveEntry{PrimitiveType::kInt, "1", std::nullopt, replicated};
}

Entry dict(std::vector<Key> keys) {
  return DictEntry{std::move(keys), false};
}

std::vector<std::string> paths_of(const RankView& view) {
  std::vector<std::string> paths;
  for (const ViewEntry& entry : view.entries()) {
    paths.push_back(entry.path);
    EXPECT_EQ(view.find(entry.path), entry.entry);
  }
  return paths;
}

std::vector<Key> keys_of(const RankView& view, std::string_view path) {
  return std::get<DictEntry>(*view.find(path)).keys;
}

TEST(RankViewTest, SplitRank) {
  EXPECT_EQ(split_rank("0/a/b"), (std::pair<std::int64_t, std::string_view>(0, "a/b")));
  EXPECT_EQ(split_rank("12/"), (std::pair<std::int64_t, std::string_view>(12, "")));
  for (const char* bad : {"", "0", "/a", "a/0", "-1/a", "+1/a", "01/a", " 1/a", "1 /a", "99999999999999999999/a"}) {
    try {
      split_rank(bad);
      FAIL() << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    }
  }
}

TEST(RankViewTest, OwnLeafThatOldVersionsListedOnEveryRank) {
  SnapshotMetadata metadata;
  metadata.world_size = 2;
  for (const char* rank : {"1/", "0/"}) {
    metadata.manifest.add(rank + std::string("m"), dict({"a", "b"}));
    metadata.manifest.add(rank + std::string("m/a"), leaf(true));
    metadata.manifest.add(rank + std::string("m/b"), leaf(false));
  }
  const RankView view(metadata, 1);
  for (const char* path : {"m/a", "m/b"}) EXPECT_EQ(find_own_leaf(metadata, 1, path)->entry, view.find(path)) << path;
  EXPECT_EQ(find_own_leaf(metadata, 1, "m/a")->entry, metadata.manifest.find("0/m/a"));
  EXPECT_EQ(find_own_leaf(metadata, 1, "m/b")->entry, metadata.manifest.find("1/m/b"));
  EXPECT_FALSE(find_own_leaf(metadata, 1, "m"));
  EXPECT_FALSE(find_own_leaf(metadata, 1, "m/c"));
  EXPECT_FALSE(find_own_leaf(metadata, 2, "m/b"));
  EXPECT_FALSE(find_own_leaf(metadata, -1, "m/b"));
}

TEST(RankViewTest, GlobalShape) {
  EXPECT_EQ(global_shape({{{Box{{0, 4}, {2, 2}}, {}}, {Box{{3, 0}, {1, 1}}, {}}}, {}}), (Dims{4, 6}));
  EXPECT_EQ(global_shape({{{Box{}, {}}}, {}}), Dims{});
  EXPECT_THROW(global_shape({}), Error);
}

SnapshotMetadata two_ranks() {
  SnapshotMetadata metadata{"0.1.0", 2, {}};
  Manifest& m = metadata.manifest;
  m.add("0/s", dict({"own", "rep", "w"}));
  m.add("0/s/own", leaf(false));
  m.add("0/s/rep", leaf(true));
  m.add("0/s/w", sharded({shard(2, "a"), shard(0, "b")}));
  m.add("1/s", dict({"own", "rep", "w", Key(Integer(7))}));
  m.add("1/s/own", leaf(false));
  m.add("1/s/w", sharded({shard(4, "c"), shard(0, "d")}));
  m.add("1/s/7", sharded({shard(0, "e")}));
  return metadata;
}

TEST(RankViewTest, ExistingRanks) {
  const SnapshotMetadata metadata = two_ranks();
  const RankView first(metadata, 0);
  EXPECT_THAT(paths_of(first), ElementsAre("s", "s/own", "s/rep", "s/w", "s/7"));
  EXPECT_THAT(keys_of(first, "s"), ElementsAre(Key("own"), Key("rep"), Key("w"), Key(Integer(7))));
  EXPECT_EQ(first.find("s/own"), metadata.manifest.find("0/s/own"));
  EXPECT_EQ(first.find("nothing"), nullptr);
  EXPECT_EQ(*first.find("s/w"), sharded({shard(0, "b"), shard(2, "a"), shard(4, "c")})) << "the box at 0 once";
  EXPECT_EQ(std::get<DictEntry>(*metadata.manifest.find("0/s")).keys.size(), 3U) << "the manifest stays";

  const RankView second(metadata, 1);
  EXPECT_THAT(paths_of(second), ElementsAre("s/rep", "s/w", "s", "s/own", "s/7"));
  EXPECT_EQ(second.find("s/own"), metadata.manifest.find("1/s/own"));
  EXPECT_EQ(second.find("s/rep"), metadata.manifest.find("0/s/rep"));
  EXPECT_EQ(second.find("s"), metadata.manifest.find("1/s")) << "nothing to add";
  EXPECT_EQ(*second.find("s/w"), *first.find("s/w"));
  for (const ViewEntry& entry : first.entries()) EXPECT_EQ(entry.added, entry.path == "s/7");
  for (const ViewEntry& entry : second.entries()) EXPECT_EQ(entry.added, entry.path == "s/rep");
}

TEST(RankViewTest, NewRanks) {
  const SnapshotMetadata metadata = two_ranks();
  for (const std::int64_t rank : {2, 3, 1000}) {
    const RankView view(metadata, rank);
    EXPECT_THAT(paths_of(view), ElementsAre("s", "s/rep", "s/w", "s/7"));
    EXPECT_THAT(keys_of(view, "s"), ElementsAre(Key("rep"), Key("w"), Key(Integer(7))));
  }
  EXPECT_THROW(RankView(metadata, -1), Error);
}

TEST(RankViewTest, PrivateToRankZeroButShardedElsewhereStays) {
  SnapshotMetadata metadata{"0.1.0", 2, {}};
  metadata.manifest.add("0/s", dict({"x", "a/b"}));
  metadata.manifest.add("0/s/x", leaf(false));
  metadata.manifest.add("0/s/a%2Fb", leaf(false));
  metadata.manifest.add("1/s", dict({"x"}));
  metadata.manifest.add("1/s/x", sharded({shard(0, "a")}));
  const RankView view(metadata, 5);
  EXPECT_THAT(paths_of(view), ElementsAre("s", "s/x"));
  EXPECT_THAT(keys_of(view, "s"), ElementsAre(Key("x")));
  EXPECT_EQ(*view.find("s/x"), sharded({shard(0, "a")}));
  EXPECT_EQ(*RankView(metadata, 0).find("s/x"), leaf(false)) << "a rank's own entry counts";
}

TEST(RankViewTest, OldVersionsListReplicatedEntriesOnEveryRank) {
  SnapshotMetadata metadata{"0.1.0", 2, {}};
  for (const char* rank : {"0/", "1/"}) {
    metadata.manifest.add(std::string(rank) + "s", dict({"x"}));
    metadata.manifest.add(std::string(rank) + "s/x", leaf(true));
  }
  const RankView view(metadata, 1);
  EXPECT_THAT(paths_of(view), ElementsAre("s/x", "s"));
  EXPECT_EQ(view.find("s/x"), metadata.manifest.find("0/s/x"));
  EXPECT_FALSE(view.entries()[0].added);
}

TEST(RankViewTest, MissingContainersAreMade) {
  SnapshotMetadata metadata{"0.1.0", 2, {}};
  Manifest& m = metadata.manifest;
  m.add("0/s", dict({"a"}));
  m.add("0/s/a", leaf(false));
  m.add("1/s", dict({"state"}));
  m.add("1/s/state", DictEntry{{Key("z"), Key(Integer(3))}, true});
  m.add("1/s/state/3", dict({"step", "avg"}));
  m.add("1/s/state/3/step", leaf(false));
  m.add("1/s/state/3/avg", sharded({shard(0, "a")}));
  const RankView view(metadata, 0);
  EXPECT_THAT(paths_of(view), ElementsAre("s", "s/a", "s/state", "s/state/3", "s/state/3/avg"));
  EXPECT_THAT(keys_of(view, "s"), ElementsAre(Key("a"), Key("state")));
  EXPECT_EQ(*view.find("s/state"), (Entry(DictEntry{{Key(Integer(3))}, true})));
  EXPECT_THAT(keys_of(view, "s/state/3"), ElementsAre(Key("avg")));
  for (const ViewEntry& entry : view.entries()) EXPECT_EQ(entry.added, entry.path.size() > 3) << entry.path;
}

TEST(RankViewTest, ListsNeverGetHoles) {
  SnapshotMetadata metadata{"0.1.0", 2, {}};
  Manifest& m = metadata.manifest;
  m.add("0/s", dict({"l", "m"}));
  m.add("0/s/l", ListEntry{});
  m.add("0/s/l/0", leaf(false));
  m.add("0/s/m", ListEntry{});
  m.add("1/s", dict({"l", "m"}));
  m.add("1/s/l", ListEntry{});
  for (int i = 11; i >= 0; --i) m.add("1/s/l/" + std::to_string(i), i == 0 ? leaf(false) : sharded({shard(0, "a")}));
  m.add("1/s/m", ListEntry{});
  m.add("1/s/m/0", leaf(false));
  m.add("1/s/m/1", sharded({shard(0, "a")}));
  const RankView view(metadata, 0);
  std::set<std::string> expected = {"s", "s/l", "s/m"};
  for (int i = 0; i <= 11; ++i) expected.insert("s/l/" + std::to_string(i));
  const auto paths = paths_of(view);
  EXPECT_EQ(std::set<std::string>(paths.begin(), paths.end()), expected) << "s/m/1 would leave a hole at 0";
}

TEST(RankViewTest, ReplicatedElementsOfAListAreThere) {
  SnapshotMetadata metadata{"0.1.0", 2, {}};
  for (const char* rank : {"0/", "1/"}) {
    metadata.manifest.add(std::string(rank) + "l", ListEntry{});
    metadata.manifest.add(std::string(rank) + "l/1", leaf(false));
  }
  metadata.manifest.add("0/l/0", leaf(true));
  metadata.manifest.add("0/l/2", leaf(true));
  EXPECT_THAT(paths_of(RankView(metadata, 1)), UnorderedElementsAre("l", "l/0", "l/1", "l/2"));
}

TEST(RankViewTest, AShardBelowALeafIsLeftOut) {
  SnapshotMetadata metadata{"0.1.0", 2, {}};
  metadata.manifest.add("0/s", leaf(false));
  metadata.manifest.add("1/s", dict({"x"}));
  metadata.manifest.add("1/s/x", sharded({shard(0, "a")}));
  EXPECT_THAT(paths_of(RankView(metadata, 0)), ElementsAre("s"));
  EXPECT_THAT(paths_of(RankView(metadata, 1)), ElementsAre("s", "s/x"));
}

TEST(RankViewTest, DTensorKeepsItsLayout) {
  const auto read = test::read_file(test::tests_dir() / "data/corpus/dtensor_2/snapshot/.snapshot_metadata");
  const SnapshotMetadata metadata = parse_metadata(read);
  for (std::int64_t rank = 0; rank < 4; ++rank) {
    const RankView view(metadata, rank);
    const auto& entry = std::get<ShardedTensorEntry>(*view.find("state/S0"));
    EXPECT_EQ(entry.shards.size(), 2U);
    EXPECT_EQ(entry.layout.mesh_shape, Dims{2});
    EXPECT_EQ(entry.layout.dim_map, (std::vector<Dims>{{0}, {-1}}));
    EXPECT_EQ(global_shape(entry), (Dims{7, 12}));
    EXPECT_EQ(view.find("state/plain") != nullptr, rank < 2);
  }
}

/// Random trees on some ranks: what each rank sees is consistent with itself, and with the rules applied path by path.
TEST(RankViewTest, RandomManifests) {
  for (unsigned seed = 0; seed < 400; ++seed) {
    std::mt19937 rng(seed);
    const auto pick = [&rng](std::size_t below) { return rng() % below; };
    SnapshotMetadata metadata{"0.1.0", static_cast<std::int64_t>(1 + pick(3)), {}};
    // Which leaves are sharded or replicated is a property of the path, as in a real state.
    std::map<std::string, std::size_t> kind_of;
    for (std::int64_t rank = 0; rank < metadata.world_size; ++rank) {
      const auto grow = [&](auto&& self, const std::string& path, int depth) -> void {
        DictEntry entry;
        std::vector<std::pair<std::string, Entry>> children;
        for (int k = 0; k < 4; ++k) {
          if (pick(3) == 0) continue;
          const std::string name = (k % 2 == 0 ? "k" : "") + std::to_string(k);
          const std::string child = path + "/" + name;
          const auto kind = kind_of.emplace(child, pick(depth > 0 ? 4 : 3)).first->second;
          if (kind == 1 && rank != 0) {
            // Replicated: named by every rank that has the container, listed on rank 0 only.
            if (metadata.manifest.find("0/" + child) == nullptr) continue;
          }
          entry.keys.push_back(k % 2 == 0 ? Key(name) : Key(Integer(name)));
          if (kind == 0) children.emplace_back(child, leaf(false));
          if (kind == 1 && rank == 0) children.emplace_back(child, leaf(true));
          if (kind == 2) children.emplace_back(child, sharded({shard(2 * static_cast<std::int64_t>(pick(4)), "a")}));
          if (kind == 3) self(self, child, depth - 1);
        }
        metadata.manifest.add(std::to_string(rank) + "/" + path, entry);
        for (auto& [child, value] : children) metadata.manifest.add(std::to_string(rank) + "/" + child, value);
      };
      if (pick(4) != 0) grow(grow, "s", 2);
    }
    for (std::int64_t rank = 0; rank < metadata.world_size + 2; ++rank) {
      const bool existed = rank < metadata.world_size;
      const RankView view(metadata, rank);
      std::map<std::string, std::set<std::string>> children;
      std::set<std::string> seen;
      for (const ViewEntry& item : view.entries()) {
        ASSERT_TRUE(seen.insert(item.path).second) << "twice: " << item.path;
        if (item.path != "s")
          children[std::string(parent_path(item.path))].insert(std::string(last_component(item.path)));
      }
      for (const ViewEntry& item : view.entries()) {
        const auto* entry = std::get_if<DictEntry>(item.entry);
        if (entry == nullptr) {
          ASSERT_FALSE(children.contains(item.path)) << "a leaf with children";
          continue;
        }
        std::set<std::string> names;
        for (const Key& key : entry->keys) ASSERT_TRUE(names.insert(encode_component(key.text)).second) << "key twice";
        ASSERT_EQ(names, children[item.path]) << "seed " << seed << " rank " << rank << " at " << item.path;
        children.erase(item.path);
      }
      children.erase("s");
      for (const auto& [path, names] : children) ASSERT_TRUE(names.empty()) << "children without a container " << path;
      // The look-up without a view finds what the rank saved itself, and nothing that the view does not show.
      for (const ViewEntry& item : view.entries()) {
        const std::optional<ViewEntry> own = find_own_leaf(metadata, rank, item.path);
        const bool is_own_leaf = existed && !item.added && !is_container(*item.entry) &&
                                 !std::holds_alternative<ShardedTensorEntry>(*item.entry);
        ASSERT_EQ(own.has_value(), is_own_leaf) << "seed " << seed << " rank " << rank << " at " << item.path;
        if (!own) continue;
        ASSERT_EQ(own->path, item.path);
        ASSERT_EQ(own->entry, item.entry);
        ASSERT_FALSE(own->added);
      }
      for (const auto& [path, entry] : metadata.manifest) {
        const std::string_view logical = split_rank(path).second;
        if (view.find(logical) == nullptr) {
          ASSERT_FALSE(find_own_leaf(metadata, rank, logical)) << logical;
        }
      }
      // Every sharded path is in every view, with all boxes; leaves as the rules say.
      for (const auto& [path, entry] : metadata.manifest) {
        const auto [saver, logical] = split_rank(path);
        const Entry* found = view.find(logical);
        if (const auto* part = std::get_if<ShardedTensorEntry>(&entry)) {
          ASSERT_NE(found, nullptr) << logical;
          const auto& all = std::get<ShardedTensorEntry>(*found).shards;
          for (const ShardEntry& piece : part->shards) {
            ASSERT_EQ(std::count_if(all.begin(), all.end(), [&](const auto& s) { return s.box == piece.box; }), 1);
          }
        } else if (is_replicated(entry)) {
          ASSERT_EQ(found, &entry) << logical;
        } else if (!is_container(entry)) {
          if (saver == rank) {
            ASSERT_EQ(found, &entry);
          }
          if (!existed) {
            ASSERT_EQ(found, nullptr) << logical;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace torchsnapshot
