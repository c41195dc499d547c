#include "plan/share_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;

std::uint64_t below(std::mt19937_64& random, std::uint64_t limit) {
  return random() % limit;
}

ReadWants random_wants(std::mt19937_64& random, std::uint64_t unit) {
  ReadWants wants;
  const std::uint64_t count = below(random, 6);
  for (std::uint64_t i = 0; i < count; ++i) {
    ObjectWants object{.location = "o" + std::to_string(i), .object_bytes = 100 * unit, .block_bytes = 0, .ranges = {}};
    std::vector<ByteRange> ranges;
    for (std::uint64_t n = 1 + below(random, 5); n > 0; --n) {
      const std::uint64_t begin = below(random, 99 * unit);
      ranges.push_back({begin, begin + 1 + below(random, std::min(30 * unit, 100 * unit - begin))});
    }
    object.ranges = joined(std::move(ranges));
    if (below(random, 5) != 0) wants.push_back(std::move(object));
  }
  return wants;
}

std::set<std::uint64_t> bytes_of(const ReadWants& wants, const std::string& location) {
  std::set<std::uint64_t> bytes;
  for (const ObjectWants& object : wants) {
    if (object.location != location) continue;
    for (const ByteRange range : object.ranges) {
      for (std::uint64_t at = range.begin; at < range.end; ++at) bytes.insert(at);
    }
  }
  return bytes;
}

TEST(SharePlan, WhatIsCommonIsWhatEveryRankWants) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 300; ++round) {
    std::vector<ReadWants> ranks;
    for (std::uint64_t n = 1 + below(random, 4); n > 0; --n) ranks.push_back(random_wants(random, 3));
    const ReadWants common = common_wants(ranks);
    for (int i = 0; i < 6; ++i) {
      const std::string location = "o" + std::to_string(i);
      std::set<std::uint64_t> expected = bytes_of(ranks[0], location);
      for (const ReadWants& wants : ranks) {
        const auto theirs = bytes_of(wants, location);
        std::erase_if(expected, [&theirs](std::uint64_t byte) { return !theirs.contains(byte); });
      }
      ASSERT_EQ(bytes_of(common, location), expected);
    }
    ASSERT_EQ(parse_wants(serialize(common)), common);  // so it is in order, too
  }
}

TEST(SharePlan, AnObjectOfTwoSizesIsNotShared) {
  ReadWants a{{"o", 10, 4, {{0, 10}}}};
  ReadWants other_size = a;
  other_size[0].object_bytes = 11;
  ReadWants other_blocks = a;
  other_blocks[0].block_bytes = 0;
  EXPECT_EQ(common_wants({a, a}), a);
  EXPECT_TRUE(common_wants({a, other_size}).empty());
  EXPECT_TRUE(common_wants({other_blocks, a}).empty());
  EXPECT_NE(digest_of(a), digest_of(other_size));
  EXPECT_NE(digest_of(a), digest_of(other_blocks));
}

TEST(SharePlan, MessagesThatAreCutOffOrOutOfOrderAreErrors) {
  const ReadWants wants{{"abc", 100, 4, {{1, 5}, {7, 9}}}, {"b", 10, 0, {{0, 10}}}};
  const std::string bytes = serialize(wants);
  ASSERT_EQ(parse_wants(bytes), wants);
  for (std::size_t size = 1; size < bytes.size(); ++size) {
    if (size == serialize({wants[0]}).size()) continue;
    EXPECT_THROW(parse_wants(bytes.substr(0, size)), Error) << size;
  }
  EXPECT_THROW(parse_wants(serialize({wants[1], wants[0]})), Error);
  EXPECT_THROW(parse_wants(serialize({{"o", 10, 0, {{0, 11}}}})), Error);
  EXPECT_THROW(parse_wants(serialize({{"o", 10, 0, {{3, 3}}}})), Error);
  EXPECT_THROW(parse_wants(serialize({{"o", 10, 0, {{3, 5}, {4, 6}}}})), Error);
}

TEST(SharePlan, ReadersDivideTheBytesOnceAndInWholeChecksumBlocks) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 300; ++round) {
    ReadWants common = random_wants(random, kMiB);
    for (ObjectWants& object : common) {
      object.block_bytes = below(random, 3) == 0 ? 0 : kMiB >> below(random, 8);
      object.object_bytes = std::max(object.ranges.back().end, 100 * kMiB - below(random, kMiB));
    }
    const auto ranks = static_cast<std::int64_t>(1 + below(random, 9));
    const std::uint64_t round_bytes = kMiB << below(random, 7);
    std::vector<std::uint64_t> loads(static_cast<std::size_t>(ranks));
    std::map<std::size_t, std::vector<ByteRange>> read;
    std::map<std::int64_t, std::pair<std::size_t, std::uint64_t>> last;  // a reader goes forward
    for (const ShareRound& one : divide_reads(common, ranks, round_bytes)) {
      std::uint64_t bytes = 0;
      ASSERT_FALSE(one.empty());
      for (const Parcel& parcel : one) {
        ASSERT_LE(parcel.bytes, kParcelBytes);
        std::uint64_t sum = 0;
        for (const SharePart& part : parcel.parts) {
          sum += part.range.size();
          read[part.object].push_back(part.range);
          const ObjectWants& object = common.at(part.object);
          if (object.block_bytes != 0) {
            ASSERT_EQ(part.range.begin % object.block_bytes, 0U);
            ASSERT_TRUE(part.range.end % object.block_bytes == 0 || part.range.end == object.object_bytes);
          }
        }
        ASSERT_EQ(sum, parcel.bytes);
        ASSERT_TRUE(parcel.parts.size() == 1 || sum < kParcelBytes + kMinOwnParcel);
        bytes += sum;
        loads.at(static_cast<std::size_t>(parcel.reader)) += sum;
      }
      ASSERT_TRUE(bytes <= round_bytes || one.size() == 1);
    }
    std::uint64_t total = 0;
    for (auto& [object, ranges] : read) {
      std::sort(ranges.begin(), ranges.end(), [](ByteRange a, ByteRange b) { return a.begin < b.begin; });
      for (std::size_t i = 1; i < ranges.size(); ++i) ASSERT_LE(ranges[i - 1].end, ranges[i].begin) << "read twice";
      for (const ByteRange range : ranges) total += range.size();
      const auto all = joined(ranges);
      for (const ByteRange wanted : common[object].ranges) {
        ASSERT_TRUE(std::any_of(all.begin(), all.end(), [&](ByteRange range) {
          return range.begin <= wanted.begin && wanted.end <= range.end;
        }));
      }
    }
    ASSERT_EQ(read.size(), common.size());
    for (const std::uint64_t load : loads) {
      ASSERT_LE(load, total / loads.size() + kParcelBytes + 1);
      ASSERT_GE(load + kParcelBytes + 1, total / loads.size());
    }
  }
}

TEST(SharePlan, ManySmallRangesGoTogether) {
  ReadWants common;
  for (int i = 0; i < 1000; ++i) common.push_back({"o" + std::to_string(10'000 + i), 4096, 4096, {{0, 4096}}});
  const auto rounds = divide_reads(common, 4, 64 * kMiB);
  ASSERT_EQ(rounds.size(), 1U);
  EXPECT_EQ(rounds[0].size(), 1U);  // 4 MB
  EXPECT_EQ(rounds[0][0].parts.size(), 1000U);
}

TEST(SharePlan, OnlyReadsThatLieInWhatIsCommonAreTaken) {
  const auto read_of = [](std::uint64_t begin, std::uint64_t end) {
    TensorRead read;
    read.range = {begin, end};
    return read;
  };
  ReadPlan plan;
  plan.objects.push_back({"a", {read_of(0, 10), read_of(5, 25), read_of(20, 30)}});
  plan.objects.push_back({"b", {read_of(0, 10)}});
  const ReadWants common{{"a", 100, 0, {{0, 12}, {20, 30}}}, {"b", 10, 0, {{0, 10}}}, {"c", 10, 0, {{0, 10}}}};
  const std::vector<ObjectRead> shared = take_shared(plan, common);
  ASSERT_EQ(shared.size(), 3U);
  ASSERT_EQ(shared[0].tensors.size(), 2U);
  EXPECT_EQ(shared[0].tensors[1].range, (ByteRange{20, 30}));
  EXPECT_EQ(shared[1].tensors.size(), 1U);
  EXPECT_TRUE(shared[2].tensors.empty());
  ASSERT_EQ(plan.objects.size(), 1U);
  ASSERT_EQ(plan.objects[0].tensors.size(), 1U);
  EXPECT_EQ(plan.objects[0].tensors[0].range, (ByteRange{5, 25}));
}

}  // namespace
}  // namespace torchsnapshot
