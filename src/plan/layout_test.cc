#include "plan/layout.h"

#include <gtest/gtest.h>

#include <random>

#include "plan/write_plan.h"

namespace torchsnapshot {
namespace {

TEST(LayOut, FillsSlabsInOrder) {
  const std::vector<LayoutItem> items = {{100, {}, false}, {10, {}, false}, {900, {}, false}, {2000, {}, false},
                                         {30, {}, true},   {40, {}, false}, {1000, {}, false}};
  const std::vector<Placement> places = lay_out(items, 1000, true);
  const std::vector<std::pair<std::size_t, std::uint64_t>> expected = {{0, 0}, {0, 128}, {1, 0}, {2, 0},
                                                                       {3, 0}, {1, 960}, {4, 0}};
  ASSERT_EQ(places.size(), expected.size());
  for (std::size_t i = 0; i < places.size(); ++i) {
    EXPECT_EQ(std::pair(places[i].object, places[i].offset), expected[i]) << i;
  }
}

TEST(LayOut, CongruentOffsets) {
  const std::uint64_t big = kCongruentBytes;
  const std::vector<LayoutItem> items = {{10, {}, false},
                                         {big, 0x7f0000000040, false},
                                         {big - 1, 0x7f0000000047, false},  // too small for the rule
                                         {big, 0x7f0000000003, false},
                                         {big, 0x7f0000000047, true}};
  const std::vector<Placement> places = lay_out(items, 1 << 30, true);
  EXPECT_EQ(places[1].offset, 64U);
  EXPECT_EQ(places[2].offset, big + 64);
  EXPECT_EQ(places[3].offset % 4096, 3U);
  EXPECT_GE(places[3].offset, places[2].offset + big - 1);
  EXPECT_LT(places[3].offset, places[2].offset + big - 1 + 4096);
  EXPECT_EQ(places[4].offset, 0U);
}

TEST(LayOut, RandomItems) {
  std::mt19937_64 random(4);
  const auto pick = [&random](std::uint64_t low, std::uint64_t high) {
    return std::uniform_int_distribution<std::uint64_t>(low, high)(random);
  };
  for (int round = 0; round < 500; ++round) {
    const std::uint64_t slab = pick(0, 4) == 0 ? pick(0, 2000) : pick(1, 2'000'000);
    const bool batching = pick(0, 4) != 0;
    std::vector<LayoutItem> items;
    for (std::uint64_t n = pick(0, 30); n > 0; --n) {
      LayoutItem item{pick(0, 2) == 0 ? pick(1, 1'000'000) : pick(1, 500), {}, pick(0, 9) == 0};
      if (pick(0, 1) == 0) item.address = pick(1, 1ULL << 47);
      items.push_back(item);
    }
    const std::vector<Placement> places = lay_out(items, slab, batching);
    ASSERT_EQ(places.size(), items.size());
    struct Object {
      std::uint64_t end = 0;
      std::size_t items = 0;
    };
    std::vector<Object> objects;
    for (std::size_t i = 0; i < items.size(); ++i) {
      ASSERT_LE(places[i].object, objects.size());  // counted in order of appearance
      if (places[i].object == objects.size()) objects.emplace_back();
      Object& object = objects[places[i].object];
      ASSERT_GE(places[i].offset, object.end);
      ASSERT_LT(places[i].offset, object.end + 4096);
      object.end = places[i].offset + items[i].size;
      ++object.items;
      if (items[i].whole_object) {
        EXPECT_EQ(places[i].offset, 0U);
      } else if (items[i].address && items[i].size >= kCongruentBytes) {
        EXPECT_EQ(places[i].offset % 4096, *items[i].address % 4096);
      } else {
        EXPECT_EQ(places[i].offset % 64, 0U);
      }
    }
    for (std::size_t i = 0; i < items.size(); ++i) {
      const Object& object = objects[places[i].object];
      if (object.items == 1) continue;
      EXPECT_TRUE(batching);
      EXPECT_FALSE(items[i].whole_object);
      EXPECT_LT(items[i].size, slab);
      EXPECT_LE(object.end, slab);
    }
  }
}

TEST(LayOut, UnlimitedSlab) {
  const std::vector<LayoutItem> items = {{1ULL << 61, {}, false}, {1ULL << 61, {}, false}, {1ULL << 61, {}, false}};
  const std::vector<Placement> places = lay_out(items, ~0ULL, true);
  EXPECT_EQ(places[1].object, 0U);
  EXPECT_EQ(places[2].object, 1U);
}

}  // namespace
}  // namespace torchsnapshot
