#include "torchsnapshot/manifest.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "manifest/test_support.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

TEST(ManifestTest, FindsWhatWasAddedInOrder) {
  Manifest manifest;
  EXPECT_EQ(manifest.find("0/a"), nullptr);
  std::vector<const Entry*> places;
  for (int i = 0; i < 5000; ++i) {
    manifest.add("0/e" + std::to_string(i * 7919 % 5000), ObjectEntry{std::to_string(i), "", "", false});
    places.push_back(manifest.find("0/e" + std::to_string(i * 7919 % 5000)));
  }
  EXPECT_EQ(manifest.size(), 5000U);
  int i = 0;
  for (const auto& [path, entry] : manifest) {
    ASSERT_EQ(path, "0/e" + std::to_string(i * 7919 % 5000));
    ASSERT_EQ(manifest.find(path), &entry);
    ASSERT_EQ(places[static_cast<std::size_t>(i)], &entry) << "entries stay where they are";
    ASSERT_EQ(std::get<ObjectEntry>(entry).location, std::to_string(i));
    ++i;
  }
  EXPECT_EQ(manifest.find("0/e5000"), nullptr);
  EXPECT_EQ(manifest.find("0/e"), nullptr);
}

TEST(ManifestTest, RefusesAPathTwice) {
  Manifest manifest;
  manifest.add("0/a", ListEntry{});
  try {
    manifest.add("0/a", DictEntry{});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
    EXPECT_THAT(error.what(), testing::HasSubstr("two entries '0/a'"));
  }
  EXPECT_EQ(manifest.size(), 1U);
  EXPECT_TRUE(std::holds_alternative<ListEntry>(*manifest.find("0/a")));
}

TEST(ManifestTest, CopiesAreIndependent) {
  Manifest manifest;
  manifest.add("0/a", ListEntry{});
  Manifest copy = manifest;
  EXPECT_EQ(copy, manifest);
  copy.add("0/b", ListEntry{});
  EXPECT_FALSE(copy == manifest);
  EXPECT_EQ(manifest.find("0/b"), nullptr);
  EXPECT_NE(copy.find("0/a"), manifest.find("0/a"));
  const Manifest moved = std::move(copy);
  EXPECT_NE(moved.find("0/b"), nullptr);
}

TEST(ManifestTest, EntryProperties) {
  const TensorEntry tensor{"a", "buffer_protocol", DType::kInt8, {2, 3}, true, std::nullopt};
  const ShardEntry first{Box{{0, 0}, {1, 3}}, {"b", "", DType::kInt8, {1, 3}, false, std::nullopt}};
  const ShardEntry second{Box{{1, 0}, {1, 3}}, {"c", "", DType::kInt8, {1, 3}, true, std::nullopt}};
  const Entry entries[] = {
      tensor,
      ChunkedTensorEntry{DType::kInt8, {2, 3}, {first, second}, true},
      ShardedTensorEntry{{second, second}, {}},
      ShardedTensorEntry{{first}, {{2}, {0, 1}, {{0}, {-1}}}},
      ObjectEntry{"o", "torch_save", "T", true},
      PrimitiveEntry{PrimitiveType::kBytes, "", std::nullopt, true},
      ListEntry{},
      DictEntry{},
      DictEntry{{}, true},
  };
  std::vector<std::string_view> names;
  std::vector<bool> containers;
  std::vector<bool> replicated;
  std::vector<std::vector<std::string_view>> locations;
  for (const Entry& entry : entries) {
    names.push_back(entry_type_name(entry));
    containers.push_back(is_container(entry));
    replicated.push_back(is_replicated(entry));
    locations.push_back(entry_locations(entry));
  }
  EXPECT_THAT(names, testing::ElementsAre("Tensor", "ChunkedTensor", "ShardedTensor", "DTensor", "object", "bytes",
                                          "list", "dict", "OrderedDict"));
  EXPECT_THAT(containers, testing::ElementsAre(false, false, false, false, false, false, true, true, true));
  EXPECT_THAT(replicated, testing::ElementsAre(true, true, false, false, true, true, false, false, false));
  EXPECT_THAT(locations,
              testing::ElementsAre(std::vector<std::string_view>{"a"}, std::vector<std::string_view>{"b", "c"},
                                   std::vector<std::string_view>{"c", "c"}, std::vector<std::string_view>{"b"},
                                   std::vector<std::string_view>{"o"}, testing::IsEmpty(), testing::IsEmpty(),
                                   testing::IsEmpty(), testing::IsEmpty()));
  EXPECT_EQ(stored_pieces(entries[0]), (std::vector<ShardEntry>{{Box{{0, 0}, {2, 3}}, tensor}}));
  EXPECT_EQ(stored_pieces(entries[1]), (std::vector<ShardEntry>{first, second}));
  EXPECT_EQ(stored_pieces(entries[2]), (std::vector<ShardEntry>{second, second}));
  EXPECT_THAT(stored_pieces(entries[4]), testing::IsEmpty());
}

}  // namespace
}  // namespace torchsnapshot
