#include "plan/partition.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace torchsnapshot {
namespace {

constexpr std::uint64_t kMiB = 1ULL << 20;

std::vector<std::uint64_t> loads_of(const std::vector<SharedBulk>& bulks,
                                    const std::vector<std::vector<Portion>>& portions, std::int64_t writers) {
  std::vector<std::uint64_t> loads(static_cast<std::size_t>(writers));
  for (std::size_t i = 0; i < bulks.size(); ++i) {
    const auto rows = static_cast<std::uint64_t>(std::max<std::int64_t>(bulks[i].rows, 1));
    for (const Portion& portion : portions[i]) {
      loads[static_cast<std::size_t>(portion.writer)] +=
          bulks[i].bytes / rows * static_cast<std::uint64_t>(portion.end - portion.begin);
    }
  }
  return loads;
}

/// Every row of every bulk is written exactly once, by a rank that exists.
void expect_tiles(const std::vector<SharedBulk>& bulks, const std::vector<std::vector<Portion>>& portions,
                  std::int64_t writers) {
  ASSERT_EQ(portions.size(), bulks.size());
  for (std::size_t i = 0; i < bulks.size(); ++i) {
    std::int64_t row = 0;
    for (const Portion& portion : portions[i]) {
      EXPECT_EQ(portion.begin, row);
      EXPECT_GT(portion.end, portion.begin);
      EXPECT_GE(portion.writer, 0);
      EXPECT_LT(portion.writer, writers);
      row = portion.end;
    }
    EXPECT_EQ(row, std::max<std::int64_t>(bulks[i].rows, 1));
    EXPECT_TRUE(bulks[i].bytes >= kMinCutBytes || portions[i].size() == 1U);
  }
}

TEST(Partition, RandomBulksAreTiledAndBalanced) {
  std::mt19937 random(7);
  for (int round = 0; round < 500; ++round) {
    const auto writers = static_cast<std::int64_t>(1 + random() % 16);
    std::vector<SharedBulk> bulks;
    std::uint64_t largest_whole = 0;
    std::uint64_t largest_row = 0;
    for (auto count = random() % 40; count > 0; --count) {
      const auto rows = static_cast<std::int64_t>(1 + random() % 2000);
      const std::uint64_t row_bytes = 1 + random() % (random() % 3 == 0 ? 500'000 : 3000);
      bulks.push_back({static_cast<std::uint64_t>(rows) * row_bytes, random() % 5 == 0 ? 1 : rows});
      if (bulks.back().rows == 1 || bulks.back().bytes < kMinCutBytes) {
        largest_whole = std::max(largest_whole, bulks.back().bytes);
      } else {
        largest_row = std::max(largest_row, row_bytes);
      }
    }
    const auto portions = partition(bulks, writers);
    expect_tiles(bulks, portions, writers);
    const auto loads = loads_of(bulks, portions, writers);
    const std::uint64_t total = std::accumulate(loads.begin(), loads.end(), std::uint64_t{0});
    const std::uint64_t mean = total / static_cast<std::uint64_t>(writers);
    const std::uint64_t most = *std::max_element(loads.begin(), loads.end());
    EXPECT_LE(most, mean + std::max({largest_whole, largest_row, std::uint64_t{kMinCutBytes}})) << "round " << round;
    EXPECT_EQ(partition(bulks, writers), portions) << "the same input gives the same division";
  }
}

TEST(Partition, AModelOfGigabytesWithinFivePercent) {
  for (const std::int64_t writers : {2, 4, 8, 64}) {
    std::vector<SharedBulk> bulks{{50257ULL * 1600 * 4, 50257}, {1024ULL * 1600 * 4, 1024}};
    for (int layer = 0; layer < 48; ++layer) {
      for (const std::int64_t rows : {4800, 1600, 6400, 1600}) {
        bulks.push_back({static_cast<std::uint64_t>(rows) * 1600 * 4, rows});
        bulks.push_back({static_cast<std::uint64_t>(rows) * 4, rows});
      }
    }
    const auto portions = partition(bulks, writers);
    const auto loads = loads_of(bulks, portions, writers);
    const double mean = static_cast<double>(std::accumulate(loads.begin(), loads.end(), std::uint64_t{0})) /
                        static_cast<double>(writers);
    for (const std::uint64_t load : loads) EXPECT_NEAR(static_cast<double>(load) / mean, 1.0, 0.05) << writers;
    std::size_t pieces = 0;
    for (const auto& list : portions) pieces += list.size();
    EXPECT_LE(pieces, bulks.size() + static_cast<std::size_t>(writers)) << "no more cuts than borders";
  }
}

TEST(Partition, OneTensorIsSplitOverAll) {
  const auto portions = partition(std::vector<SharedBulk>{{64 * kMiB, 64}}, 4);
  const std::vector<Portion> expected{{0, 0, 16}, {1, 16, 32}, {2, 32, 48}, {3, 48, 64}};
  EXPECT_EQ(portions[0], expected);
}

TEST(Partition, WhatCantBeCutGoesToTheLeastLoaded) {
  const auto portions = partition(std::vector<SharedBulk>{{30 * kMiB, 1}, {40 * kMiB, 40}, {10 * kMiB, 1}}, 2);
  EXPECT_EQ(portions[0], (std::vector<Portion>{{0, 0, 1}}));
  EXPECT_EQ(portions[2], (std::vector<Portion>{{1, 0, 1}}));
  EXPECT_EQ(portions[1], (std::vector<Portion>{{0, 0, 10}, {1, 10, 40}}));
}

TEST(Partition, NothingAndEmpty) {
  EXPECT_TRUE(partition({}, 3).empty());
  EXPECT_EQ(partition(std::vector<SharedBulk>{{0, 0}}, 3)[0], (std::vector<Portion>{{0, 0, 1}}));
}

TEST(Partition, ManyRanks) {
  const auto portions = partition(std::vector<SharedBulk>{{4096 * kMiB, 1 << 20}}, 100'000);
  expect_tiles({{4096 * kMiB, 1 << 20}}, portions, 100'000);
  EXPECT_LE(portions[0].size(), 4096U) << "no portion below a MiB";
}

}  // namespace
}  // namespace torchsnapshot
