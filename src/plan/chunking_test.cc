#include "plan/chunking.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>
#include <random>
#include <sstream>
#include <string>

#include "plan/write_plan.h"

namespace torchsnapshot {
namespace {

Dims parse_dims(const std::string& text) {
  Dims dims;
  std::istringstream stream(text);
  for (std::string size; std::getline(stream, size, ',');) dims.push_back(std::stoll(size));
  return dims;
}

TEST(ChunkRows, AsTorchChunk) {
  std::ifstream file(std::filesystem::path(__FILE__).parent_path() / "../../tests/data/chunk_cases.txt");
  int cases = 0;
  int several = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("# ")) continue;
    std::istringstream columns(line);
    std::string dtype;
    std::string shape;
    std::uint64_t limit = 0;
    std::string rows;
    ASSERT_TRUE(columns >> dtype >> shape >> limit >> rows) << line;
    const Dims expected = parse_dims(rows);
    EXPECT_EQ(chunk_rows(parse_dims(shape), *dtype_from_name(dtype), limit), expected) << line;
    ++cases;
    several += expected.size() > 1 ? 1 : 0;
  }
  EXPECT_GE(cases, 300);
  EXPECT_GT(several, 200);
}

TEST(ChunkRows, EdgeCases) {
  EXPECT_EQ(chunk_rows(Dims{}, DType::kFloat64, 1), (Dims{1}));
  EXPECT_EQ(chunk_rows(Dims{0, 5}, DType::kFloat64, 1), (Dims{0}));
  EXPECT_EQ(chunk_rows(Dims{5, 0}, DType::kFloat64, 1), (Dims{5}));
  EXPECT_EQ(chunk_rows(Dims{3}, DType::kFloat64, std::numeric_limits<std::uint64_t>::max()), (Dims{3}));
  constexpr std::int64_t kHuge = std::int64_t{1} << 60;
  EXPECT_EQ(chunk_rows(Dims{kHuge}, DType::kInt32, std::uint64_t{1} << 61), (Dims{kHuge / 2, kHuge / 2}));
}

/// The boxes lie side by side along one dimension, in order, and make up `whole`.
void expect_tiles(const std::vector<Box>& boxes, const Box& whole) {
  ASSERT_FALSE(boxes.empty());
  if (boxes.size() == 1) {
    EXPECT_EQ(boxes[0], whole);
    return;
  }
  std::size_t cut = 0;
  while (boxes[0].sizes[cut] == whole.sizes[cut]) ++cut;
  std::int64_t at = whole.offsets[cut];
  for (const Box& box : boxes) {
    Box expected = whole;
    expected.offsets[cut] = at;
    expected.sizes[cut] = box.sizes[cut];
    EXPECT_EQ(box, expected);
    EXPECT_GT(box.sizes[cut], 0);
    at += box.sizes[cut];
  }
  EXPECT_EQ(at, whole.offsets[cut] + whole.sizes[cut]);
}

TEST(Chunking, BoxesTileTheTensorOrShard) {
  std::mt19937 random(3);
  const auto pick = [&random](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  int divided = 0;
  for (int i = 0; i < 1000; ++i) {
    const int rank = pick(0, 4);
    Dims shape;
    Box shard;
    for (int d = 0; d < rank; ++d) {
      shape.push_back(pick(1, 9));
      const bool whole = pick(0, 1) == 0;
      shard.offsets.push_back(whole ? 0 : pick(0, static_cast<int>(shape.back()) - 1));
      shard.sizes.push_back(whole ? shape.back() : pick(1, static_cast<int>(shape.back() - shard.offsets.back())));
    }
    const auto limit = static_cast<std::uint64_t>(pick(1, 300));
    SCOPED_TRACE(i);
    expect_tiles(chunk_boxes(shape, DType::kFloat32, limit), Box::whole(shape));

    const std::vector<Box> parts = subdivide_shard(shape, shard, DType::kFloat32, limit);
    expect_tiles(parts, shard);
    if (parts.size() == 1) continue;
    ++divided;
    EXPECT_GT(dense_bytes(DType::kFloat32, shard.sizes), limit);
    std::size_t sharding_dim = 0;
    while (sharding_dim < shape.size() && shard.sizes[sharding_dim] == shape[sharding_dim]) ++sharding_dim;
    if (sharding_dim == shape.size()) sharding_dim = 0;
    for (const Box& part : parts) {
      for (std::size_t d = 0; d < shape.size(); ++d) {
        if (d != sharding_dim) {
          EXPECT_EQ(part.sizes[d], shard.sizes[d]);
        }
      }
      if (part.sizes[sharding_dim] > 1) {
        EXPECT_LE(dense_bytes(DType::kFloat32, part.sizes), limit);
      }
    }
  }
  EXPECT_GT(divided, 100);
}

TEST(SubdivideShard, ByTheOriginalsRule) {
  // Rows of 40 bytes, at most 100: two rows a piece.
  const std::vector<Box> parts = subdivide_shard({20, 10}, {{5, 0}, {5, 10}}, DType::kFloat32, 100);
  EXPECT_EQ(parts, (std::vector<Box>{{{5, 0}, {2, 10}}, {{7, 0}, {2, 10}}, {{9, 0}, {1, 10}}}));
  // Sharded along dimension 1.
  EXPECT_EQ(subdivide_shard({4, 6}, {{0, 3}, {4, 3}}, DType::kFloat32, 20),
            (std::vector<Box>{{{0, 3}, {4, 1}}, {{0, 4}, {4, 1}}, {{0, 5}, {4, 1}}}));
}

}  // namespace
}  // namespace torchsnapshot
