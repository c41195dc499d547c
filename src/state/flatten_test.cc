#include "state/flatten.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using testing::HasSubstr;

bool equal(const Value& a, const Value& b) {
  if (a.node().index() != b.node().index()) return false;
  if (const auto* list = a.get_if<List>()) {
    const auto& other = b.get_if<List>()->items;
    return std::equal(list->items.begin(), list->items.end(), other.begin(), other.end(), equal);
  }
  if (const auto* dict = a.get_if<Dict>()) {
    const auto* other = b.get_if<Dict>();
    return dict->ordered == other->ordered &&
           std::equal(dict->items.begin(), dict->items.end(), other->items.begin(), other->items.end(),
                      [](const auto& x, const auto& y) { return x.first == y.first && equal(x.second, y.second); });
  }
  if (const auto* integer = a.get_if<Integer>()) return *integer == *b.get_if<Integer>();
  if (const auto* text = a.get_if<std::string>()) return *text == *b.get_if<std::string>();
  return false;
}

Value inflate_flat(const std::string& root, const FlatState& state, std::mt19937* shuffle = nullptr) {
  std::vector<FlatContainer> containers = state.containers;
  std::vector<FlatLeaf> leaves = state.leaves;
  if (shuffle != nullptr) {
    std::shuffle(containers.begin(), containers.end(), *shuffle);
    std::shuffle(leaves.begin(), leaves.end(), *shuffle);
  }
  std::vector<std::string> paths;
  std::vector<Value> values;
  for (const FlatLeaf& leaf : leaves) {
    paths.push_back(leaf.path);
    values.push_back(*leaf.value);
  }
  return Inflater(root, std::move(containers), paths).build(std::move(values));
}

std::string message_of(const std::function<void()>& action, ErrorCode code) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

std::string random_key(std::mt19937& random) {
  static const std::vector<std::string> kOdd = {"", ".", "..", "a/b", "a%2Fb", "%", "100%", "ключ", "0", "-1", "a b\n"};
  if (random() % 3 == 0) return kOdd[random() % kOdd.size()];
  return "k" + std::to_string(random() % 50);
}

Value random_tree(std::mt19937& random, int depth) {
  const auto kind = random() % (depth == 0 ? 2 : 5);
  if (kind == 0) return Integer(static_cast<std::int64_t>(random()));
  if (kind == 1) return std::string("text ") + std::to_string(random());
  if (kind == 2) {
    List list;
    for (auto i = random() % 13; i > 0; --i) list.items.push_back(random_tree(random, depth - 1));
    return list;
  }
  Dict dict;
  dict.ordered = kind == 3;
  for (auto i = random() % 13; i > 0; --i) {
    const std::string text = random_key(random);
    const bool taken =
        std::any_of(dict.items.begin(), dict.items.end(), [&](const auto& item) { return item.first.text == text; });
    if (taken) continue;
    const bool is_int = text == "0" || text == "-1";
    dict.items.emplace_back(is_int ? Key(Integer(text)) : Key(text), random_tree(random, depth - 1));
  }
  return dict;
}

TEST(Flatten, InflateGivesBackTheTree) {
  for (unsigned seed = 0; seed < 500; ++seed) {
    std::mt19937 random(seed);
    const Value tree = random_tree(random, 4);
    FlatState state;
    flatten(tree, "root", state);
    EXPECT_TRUE(equal(inflate_flat("root", state, &random), tree)) << "seed " << seed;
  }
}

TEST(Flatten, AnEmptyRootPathIsAPathLikeAnyOther) {
  const Value tree = Dict{.items = {{"", List{.items = {Integer(7)}}}}};
  FlatState state;
  flatten(tree, "", state);
  EXPECT_EQ(state.leaves.at(0).path, "//0");
  EXPECT_TRUE(equal(inflate_flat("", state), tree));
}

TEST(Flatten, EscapesKeysAndKeepsOrder) {
  const Value tree = Dict{.items = {{"z/%", Integer(1)}, {Integer(3), Integer(2)}, {"a", Integer(3)}}, .ordered = true};
  FlatState state;
  flatten(tree, "s", state);
  ASSERT_EQ(state.leaves.size(), 3U);
  EXPECT_EQ(state.leaves[0].path, "s/z%2F%25");
  EXPECT_EQ(state.leaves[1].path, "s/3");
  ASSERT_EQ(state.containers.size(), 1U);
  EXPECT_TRUE(state.containers[0].ordered);
  EXPECT_EQ(state.containers[0].keys, (std::vector<Key>{"z/%", Integer(3), "a"}));
}

TEST(Flatten, RefusesKeysThatReadBackAlike) {
  const Value tree = Dict{.items = {{"1", Integer(1)}, {Integer(1), Integer(2)}}};
  FlatState state;
  EXPECT_THAT(message_of([&] { flatten(tree, "s", state); }, ErrorCode::kInvalidArgument), HasSubstr("'s'"));
}

TEST(Flatten, RefusesEndlessNesting) {
  Value tree = Integer(0);
  for (int i = 0; i < kMaxDepth + 1; ++i) {
    List list;
    list.items.push_back(std::move(tree));
    tree = std::move(list);
  }
  FlatState state;
  EXPECT_THAT(message_of([&] { flatten(tree, "s", state); }, ErrorCode::kInvalidArgument), HasSubstr("levels deep"));
}

FlatContainer list_at(const std::string& path) {
  return {.path = path, .is_list = true, .ordered = false, .keys = {}};
}
FlatContainer dict_at(const std::string& path, std::vector<Key> keys) {
  return {.path = path, .is_list = false, .ordered = false, .keys = std::move(keys)};
}

TEST(Inflate, NamesWhatIsWrong) {
  const auto fails = [](std::vector<FlatContainer> containers, const std::vector<std::string>& leaves) {
    return message_of([&] { Inflater("s", std::move(containers), leaves); }, ErrorCode::kCorrupt);
  };
  EXPECT_THAT(fails({dict_at("s", {"a", "b"})}, {"s/a"}), HasSubstr("'s' names a child 'b'"));
  EXPECT_THAT(fails({dict_at("s", {"a"})}, {"s/a", "s/b"}), HasSubstr("does not name its child 'b'"));
  EXPECT_THAT(fails({list_at("s")}, {"s/0", "s/2"}), HasSubstr("elements are missing"));
  EXPECT_THAT(fails({list_at("s")}, {"s/01"}), HasSubstr("no index"));
  EXPECT_THAT(fails({list_at("s")}, {"s/x"}), HasSubstr("no index"));
  EXPECT_THAT(fails({list_at("s")}, {"s/0", "s/0"}), HasSubstr("twice"));
  EXPECT_THAT(fails({dict_at("s", {})}, {"s/a/b"}), HasSubstr("no list or dict as its parent"));
  EXPECT_THAT(fails({}, {"s", "s/a"}), HasSubstr("no list or dict as its parent"));
  EXPECT_THAT(fails({}, {}), HasSubstr("'s' is not in the manifest"));
  EXPECT_THAT(fails({dict_at("s", {"a"})}, {"s/a", "s/%61"}), HasSubstr("same key"));
}

TEST(IntegerText, ConvertsWhereItFits) {
  EXPECT_EQ(Integer("-9223372036854775808").to_int64(), INT64_MIN);
  EXPECT_EQ(Integer("9223372036854775808").to_int64(), std::nullopt);
  EXPECT_EQ(Integer("").to_int64(), std::nullopt);
  EXPECT_EQ(Integer("1x").to_int64(), std::nullopt);
}

}  // namespace
}  // namespace torchsnapshot
