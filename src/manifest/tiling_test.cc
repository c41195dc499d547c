#include "manifest/tiling.h"

#include <algorithm>
#include <random>

#include "gtest/gtest.h"

namespace torchsnapshot {
namespace {

std::vector<ShardEntry> pieces_of(const std::vector<Box>& boxes) {
  std::vector<ShardEntry> pieces;
  for (const Box& box : boxes) pieces.push_back({box, {}});
  return pieces;
}

/// How often each element is covered, by counting.
Tiling count_tiling(const Dims& shape, const std::vector<Box>& boxes) {
  const auto strides = row_major_strides(shape);
  std::vector<int> counts(static_cast<std::size_t>(element_count(shape)), 0);
  for (std::size_t i = 0; i < counts.size(); ++i) {
    for (const Box& box : boxes) {
      bool inside = true;
      for (std::size_t d = 0; d < shape.size(); ++d) {
        const std::int64_t at = static_cast<std::int64_t>(i) / strides[d] % shape[d];
        inside = inside && at >= box.offsets[d] && at < box.offsets[d] + box.sizes[d];
      }
      counts[i] += inside ? 1 : 0;
    }
  }
  if (std::any_of(counts.begin(), counts.end(), [](int n) { return n > 1; })) return Tiling::kOverlap;
  return std::all_of(counts.begin(), counts.end(), [](int n) { return n == 1; }) ? Tiling::kExact : Tiling::kGap;
}

/// Cuts a box in two at random until there are enough.
std::vector<Box> random_tiling(const Dims& shape, std::size_t most, std::mt19937& rng) {
  std::vector<Box> boxes = {Box::whole(shape)};
  while (boxes.size() < most && !shape.empty()) {
    Box& box = boxes[rng() % boxes.size()];
    const std::size_t d = rng() % shape.size();
    const auto cut = static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(box.sizes[d] + 1));
    Box rest = box;
    rest.offsets[d] += cut;
    rest.sizes[d] -= cut;
    box.sizes[d] = cut;
    boxes.push_back(rest);
  }
  std::shuffle(boxes.begin(), boxes.end(), rng);
  return boxes;
}

TEST(TilingTest, AgreesWithCounting) {
  std::mt19937 rng(1);
  int exact = 0;
  for (int i = 0; i < 3000; ++i) {
    Dims shape(rng() % 4);
    for (auto& size : shape) size = static_cast<std::int64_t>(rng() % 6);
    std::vector<Box> boxes = random_tiling(shape, 1 + rng() % 8, rng);
    if (i % 2 == 1 && !shape.empty()) {
      // Move, drop or double one.
      Box& box = boxes[rng() % boxes.size()];
      const std::size_t d = rng() % shape.size();
      const std::int64_t room = shape[d] - box.sizes[d];
      switch (rng() % 3) {
        case 0:
          box.offsets[d] = room == 0 ? 0 : static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(room + 1));
          break;
        case 1:
          boxes.erase(boxes.begin());
          break;
        default:
          boxes.push_back(boxes.front());
      }
    }
    const Tiling expected = count_tiling(shape, boxes);
    const Tiling found = check_tiling(shape, pieces_of(boxes));
    ASSERT_EQ(found == Tiling::kExact, expected == Tiling::kExact) << i;
    exact += found == Tiling::kExact ? 1 : 0;
  }
  EXPECT_GT(exact, 1500);
  EXPECT_LT(exact, 2900);
}

TEST(TilingTest, WhatCountsAndVolumesAloneWouldMiss) {
  // A pinwheel: no cut goes through, still a tiling.
  EXPECT_EQ(check_tiling(
                Dims{3, 3},
                pieces_of({{{0, 0}, {1, 2}}, {{0, 2}, {2, 1}}, {{2, 1}, {1, 2}}, {{1, 0}, {2, 1}}, {{1, 1}, {1, 1}}})),
            Tiling::kExact);
  // The right volume in the wrong places.
  EXPECT_EQ(check_tiling(Dims{4}, pieces_of({{{0}, {2}}, {{1}, {2}}})), Tiling::kOverlap);
  EXPECT_EQ(check_tiling(Dims{4}, pieces_of({{{0}, {2}}})), Tiling::kGap);
  EXPECT_EQ(check_tiling(Dims{4}, {}), Tiling::kGap);
  EXPECT_EQ(check_tiling(Dims{}, pieces_of({{{}, {}}, {{}, {}}})), Tiling::kOverlap);
  EXPECT_EQ(check_tiling(Dims{0, 5}, {}), Tiling::kExact);
  EXPECT_EQ(check_tiling(Dims{2, 2, 2, 2, 2},
                         pieces_of({{{0, 0, 0, 0, 0}, {1, 1, 1, 1, 1}}, {{0, 0, 0, 0, 0}, {1, 1, 1, 1, 31}}})),
            Tiling::kTooManyDims);
}

TEST(TilingTest, ManyBoxesAreQuick) {
  // 40,000 columns that share their rows: pairwise comparison would take minutes.
  std::vector<Box> boxes;
  for (std::int64_t i = 0; i < 40'000; ++i) boxes.push_back({{i % 2, i / 2}, {1, 1}});
  EXPECT_EQ(check_tiling(Dims{2, 20'000}, pieces_of(boxes)), Tiling::kExact);
  boxes[17] = boxes[18];
  EXPECT_EQ(check_tiling(Dims{2, 20'000}, pieces_of(boxes)), Tiling::kOverlap);
}

}  // namespace
}  // namespace torchsnapshot
