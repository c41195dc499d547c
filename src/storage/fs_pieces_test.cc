#include "storage/fs_pieces.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace torchsnapshot {
namespace {

using Way = Piece::Way;
constexpr DirectAlign kAlign{512, 4096};
constexpr PieceLimits kLimits{16384, 8192};

TEST(CutWrite, AnAlignedBlockGoesStraight) {
  EXPECT_EQ(
      cut_write(8192, 1 << 20, 20480, kAlign, kLimits),
      (std::vector<Piece>{{Way::kStraight, 8192, 16384, 0, 0, 16384}, {Way::kStraight, 24576, 4096, 0, 16384, 4096}}));
  EXPECT_TRUE(cut_write(8192, 1 << 20, 0, kAlign, kLimits).empty());
}

TEST(CutWrite, EndsGoThroughThePageCache) {
  // Memory that is congruent to the offset: the interior needs no copy.
  EXPECT_EQ(cut_write(4000, 4000, 5000, kAlign, kLimits),
            (std::vector<Piece>{{Way::kBuffered, 4000, 96, 0, 0, 96},
                                {Way::kStraight, 4096, 4096, 0, 96, 4096},
                                {Way::kBuffered, 8192, 808, 0, 4192, 808}}));
  // And memory that isn't.
  EXPECT_EQ(cut_write(4000, 4001, 5000, kAlign, kLimits)[1].way, Way::kBounced);
  // No whole page in it.
  EXPECT_EQ(cut_write(4000, 4000, 4191, kAlign, kLimits),
            (std::vector<Piece>{{Way::kBuffered, 4000, 4191, 0, 0, 4191}}));
}

TEST(CutRead, EndsAreReadAsWholePages) {
  EXPECT_EQ(cut_read(4000, 4000, 5000, kAlign, kLimits),
            (std::vector<Piece>{{Way::kBounced, 0, 4096, 4000, 0, 96},
                                {Way::kStraight, 4096, 4096, 0, 96, 4096},
                                {Way::kBounced, 8192, 4096, 0, 4192, 808}}));
  EXPECT_EQ(cut_read(4000, 4001, 5000, kAlign, kLimits),
            (std::vector<Piece>{{Way::kBounced, 0, 8192, 4000, 0, 4192}, {Way::kBounced, 8192, 4096, 0, 4192, 808}}));
  EXPECT_EQ(cut_read(5000, 5000, 10, kAlign, kLimits), (std::vector<Piece>{{Way::kBounced, 4096, 4096, 904, 0, 10}}));
  EXPECT_TRUE(cut_read(5000, 5000, 0, kAlign, kLimits).empty());
}

struct Case {
  std::uint64_t offset, address;
  std::size_t size;
  DirectAlign align;
  PieceLimits limits;
};

Case random_case(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Case c{};
  c.align = {std::size_t{1} << (random() % 13), std::size_t{4096} << (random() % 3)};
  c.limits = {c.align.offset * (1 + random() % 5), c.align.offset * (1 + random() % 3)};
  c.size = random() % (1 << (1 + random() % 18));
  c.offset = random() % 3 == 0 ? random() % 100 * 4096 : random() % (1ULL << (1 + random() % 40));
  c.address = random() % 3 == 0 ? 4096 * (1 + random() % 100) + c.offset % 4096 : 1 + random() % (1ULL << 40);
  return c;
}

/// What holds for every cut: the useful parts are the block, in order; transfers are as direct I/O wants them.
void check(const Case& c, const std::vector<Piece>& pieces) {
  std::size_t at = 0;
  for (const Piece& piece : pieces) {
    ASSERT_EQ(piece.at, at);
    ASSERT_GT(piece.useful, 0U);
    ASSERT_EQ(piece.offset + piece.skip, c.offset + piece.at);
    ASSERT_LE(piece.skip + piece.useful, piece.size);
    at += piece.useful;
    if (piece.way == Way::kBuffered) {
      ASSERT_EQ(piece.size, piece.useful);
      continue;
    }
    ASSERT_EQ(piece.offset % c.align.offset, 0U);
    ASSERT_EQ(piece.size % c.align.offset, 0U);
    ASSERT_LE(piece.size, piece.way == Way::kStraight ? c.limits.straight : c.limits.bounced);
    if (piece.way == Way::kStraight) {
      ASSERT_EQ(piece.useful, piece.size);
      ASSERT_EQ((c.address + piece.at) % c.align.memory, 0U);
    }
  }
  ASSERT_EQ(at, c.size);
}

TEST(CutWrite, RandomBlocks) {
  int straight = 0;
  for (std::uint64_t seed = 0; seed < 5000; ++seed) {
    const Case c = random_case(seed);
    const auto pieces = cut_write(c.offset, c.address, c.size, c.align, c.limits);
    check(c, pieces);
    ASSERT_FALSE(HasFatalFailure()) << "seed " << seed;
    std::size_t buffered = 0;
    for (const Piece& piece : pieces) {
      ASSERT_EQ(piece.useful, piece.size) << "seed " << seed;  // never a byte of another block
      if (piece.way == Way::kBuffered) buffered += piece.size;
      straight += piece.way == Way::kStraight ? 1 : 0;
    }
    ASSERT_LT(buffered, 2 * c.align.offset) << "seed " << seed;
  }
  EXPECT_GT(straight, 1000);
}

TEST(CutRead, RandomBlocks) {
  int straight = 0;
  for (std::uint64_t seed = 0; seed < 5000; ++seed) {
    const Case c = random_case(seed);
    const auto pieces = cut_read(c.offset, c.address, c.size, c.align, c.limits);
    check(c, pieces);
    ASSERT_FALSE(HasFatalFailure()) << "seed " << seed;
    std::uint64_t end = 0;
    std::size_t useless = 0;
    for (const Piece& piece : pieces) {
      ASSERT_NE(piece.way, Way::kBuffered) << "seed " << seed;
      ASSERT_TRUE(end == 0 || piece.offset == end) << "seed " << seed;  // no page is read twice
      end = piece.offset + piece.size;
      useless += piece.size - piece.useful;
      straight += piece.way == Way::kStraight ? 1 : 0;
    }
    ASSERT_LT(useless, 2 * c.align.offset) << "seed " << seed;
  }
  EXPECT_GT(straight, 1000);
}

}  // namespace
}  // namespace torchsnapshot
