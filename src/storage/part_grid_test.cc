#include "storage/part_grid.h"

#include <gtest/gtest.h>

#include <random>

namespace torchsnapshot {
namespace {

constexpr std::uint64_t kMiB = 1ULL << 20;

TEST(PartGrid, SizesAndCounts) {
  EXPECT_EQ(PartGrid(0, 16 * kMiB).count(), 1U);
  EXPECT_EQ(PartGrid(0, 16 * kMiB).range(0).size(), 0U);
  EXPECT_EQ(PartGrid(16 * kMiB, 16 * kMiB).count(), 1U);
  EXPECT_EQ(PartGrid(16 * kMiB + 1, 16 * kMiB).count(), 2U);
  EXPECT_EQ(PartGrid(16 * kMiB + 1, 16 * kMiB).range(1), (ByteRange{16 * kMiB, 16 * kMiB + 1}));
}

TEST(PartGrid, NeverMoreThanTenThousandParts) {
  for (const std::uint64_t size : {160'000 * kMiB - 1, 160'000 * kMiB, 160'000 * kMiB + 1, 5'000'000 * kMiB}) {
    const PartGrid grid(size, 16 * kMiB);
    EXPECT_LE(grid.count(), 10'000U) << size;
    EXPECT_EQ(grid.part_bytes() % kMiB, 0U);
    EXPECT_LE(grid.part_bytes(), std::max(16 * kMiB, size / 10'000 + kMiB));
  }
  EXPECT_EQ(PartGrid(160'000 * kMiB - 1, 16 * kMiB).part_bytes(), 16 * kMiB);
}

TEST(PartGrid, RandomBlocksAreCutExactly) {
  for (std::uint32_t seed = 0; seed < 1000; ++seed) {
    std::mt19937 random(seed);
    const std::uint64_t size = random() % 1000;
    const PartGrid grid(size, random() % 60 + 1);
    const std::uint64_t offset = random() % (size + 1);
    const std::uint64_t count = random() % (size - offset + 1);
    std::uint64_t at = offset;
    for (const PartPiece& piece : grid.cut(offset, count)) {
      const ByteRange part = grid.range(piece.part);
      EXPECT_EQ(part.begin + piece.in_part, at);
      EXPECT_EQ(piece.in_block, at - offset);
      EXPECT_GT(piece.size, 0U);
      EXPECT_LE(at + piece.size, part.end);
      EXPECT_EQ(piece.is_whole_part, at == part.begin && at + piece.size == part.end);
      at += piece.size;
    }
    EXPECT_EQ(at, offset + count);
    std::uint64_t covered = 0;
    for (std::uint64_t part = 0; part < grid.count(); ++part) {
      EXPECT_EQ(grid.range(part).begin, covered);
      covered = grid.range(part).end;
    }
    EXPECT_EQ(covered, size);
  }
}

}  // namespace
}  // namespace torchsnapshot
