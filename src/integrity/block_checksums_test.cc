#include "integrity/block_checksums.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "integrity/crc32c.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::size_t kThreads = 4;

std::vector<std::byte> random_bytes(std::mt19937_64& random, std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (auto& value : bytes) value = static_cast<std::byte>(random());
  return bytes;
}

/// The table by its definition.
ChecksumTable direct_table(std::span<const std::byte> object, std::uint64_t block_bytes) {
  ChecksumTable table{object.size(), block_bytes, {}};
  for (std::size_t at = 0; at < object.size(); at += block_bytes) {
    table.checksums.push_back(crc32c(0, object.subspan(at, std::min(block_bytes, object.size() - at))));
  }
  return table;
}

/// Pieces that tile [0, size), in random order; about a third begin or end at a block.
std::vector<ByteRange> random_pieces(std::mt19937_64& random, std::uint64_t size, std::uint64_t block_bytes,
                                     std::size_t cuts) {
  std::vector<std::uint64_t> edges{0, size};
  for (std::size_t i = 0; i < cuts && size != 0; ++i) {
    const std::uint64_t edge = random() % size;
    edges.push_back(random() % 3 == 0 ? edge / block_bytes * block_bytes : edge);
  }
  std::sort(edges.begin(), edges.end());
  std::vector<ByteRange> pieces;  // some are empty
  for (std::size_t i = 1; i < edges.size(); ++i) pieces.push_back({edges[i - 1], edges[i]});
  std::shuffle(pieces.begin(), pieces.end(), random);
  return pieces;
}

std::span<const std::byte> part(std::span<const std::byte> object, ByteRange range) {
  return object.subspan(range.begin, range.size());
}

/// Calls `work(piece)` for each piece, on several threads.
template <class Work>
void on_threads(const std::vector<ByteRange>& pieces, const Work& work) {
  std::atomic<std::size_t> next = 0;
  std::vector<std::jthread> threads;
  for (std::size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (std::size_t k = next++; k < pieces.size(); k = next++) work(pieces[k]);
    });
  }
}

template <class Work>
ErrorCode code_of(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.code();
  }
  ADD_FAILURE() << "nothing was thrown";
  return ErrorCode::kCancelled;
}

struct Case {
  std::vector<std::byte> object;
  std::uint64_t block_bytes;
};

Case random_case(std::mt19937_64& random) {
  const std::uint64_t block_bytes = 512ULL << random() % 4;
  const std::uint64_t blocks = random() % 12;
  std::uint64_t size = blocks * block_bytes + (random() % 3 == 0 ? 0 : random() % block_bytes);
  if (random() % 20 == 0) size = random() % 2;
  return {random_bytes(random, size), block_bytes};
}

TEST(ChecksumBuilderTest, AnyPiecesInAnyOrderGiveTheSameTable) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 600; ++round) {
    const auto [object, block_bytes] = random_case(random);
    ChecksumBuilder builder(object.size(), block_bytes);
    std::vector<std::byte> copy(object.size());
    for (const ByteRange piece : random_pieces(random, object.size(), block_bytes, random() % 40)) {
      if (random() % 2 == 0) {
        EXPECT_EQ(builder.add(piece.begin, part(object, piece)), crc32c(0, part(object, piece)));
        std::copy_n(object.begin() + static_cast<std::ptrdiff_t>(piece.begin), piece.size(),
                    copy.begin() + static_cast<std::ptrdiff_t>(piece.begin));
      } else {
        builder.add_copy(piece.begin, std::span(copy).subspan(piece.begin, piece.size()), part(object, piece));
      }
    }
    ASSERT_EQ(builder.finish(), direct_table(object, block_bytes));
    ASSERT_EQ(copy, object);
  }
}

TEST(ChecksumBuilderTest, FromSeveralThreads) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 60; ++round) {
    const Case drawn = random_case(random);
    const auto& object = drawn.object;
    const std::uint64_t block_bytes = drawn.block_bytes;
    ChecksumBuilder builder(object.size(), block_bytes);
    std::vector<std::byte> copy(object.size());
    on_threads(random_pieces(random, object.size(), block_bytes, 300), [&](ByteRange piece) {
      builder.add_copy(piece.begin, std::span(copy).subspan(piece.begin, piece.size()), part(object, piece));
    });
    ASSERT_EQ(builder.finish(), direct_table(object, block_bytes));
    ASSERT_EQ(copy, object);
  }
}

TEST(ChecksumBuilderTest, ZerosNeedNoMemory) {
  std::vector<std::byte> bytes(5000);
  for (std::size_t i = 1000; i < 1500; ++i) bytes[i] = static_cast<std::byte>(i);
  ChecksumBuilder whole(bytes.size(), 512);
  whole.add(0, bytes);
  ChecksumBuilder parts(bytes.size(), 512);
  parts.add_zeros(1500, 3500);
  parts.add(1000, std::span<const std::byte>(bytes).subspan(1000, 500));
  parts.add_zeros(0, 1000);
  EXPECT_EQ(parts.finish(), whole.finish());
  EXPECT_THROW(ChecksumBuilder(100, 512).add_zeros(50, 51), Error);
}

TEST(ChecksumBuilderTest, DefaultBlock) {
  std::mt19937_64 random(3);
  const auto object = random_bytes(random, (5 << 20) / 2);
  ChecksumBuilder builder(object.size());
  builder.add(1000, std::span(object).subspan(1000));
  builder.add(0, std::span(object).first(1000));
  const ChecksumTable table = builder.finish();
  EXPECT_EQ(table.checksums.size(), 3U);
  EXPECT_EQ(table, direct_table(object, 1 << 20));
}

TEST(ChecksumBuilderTest, SaysWhatIsWrong) {
  const std::vector<std::byte> bytes(2000);
  const auto all = std::span(bytes);
  for (const std::uint64_t size : {0ULL, 1ULL, 256ULL, 511ULL, 513ULL, 768ULL, 1ULL << 31, ~0ULL}) {
    EXPECT_EQ(code_of([&] { ChecksumBuilder(10, size); }), ErrorCode::kInvalidArgument) << size;
  }
  ChecksumBuilder builder(1500, 512);
  EXPECT_EQ(code_of([&] { builder.add(0, all.first(1501)); }), ErrorCode::kInternal);
  EXPECT_EQ(code_of([&] { builder.add(1500, all.first(1)); }), ErrorCode::kInternal);
  EXPECT_EQ(code_of([&] { builder.add(~0ULL, all.first(2)); }), ErrorCode::kInternal);
  std::vector<std::byte> small(3);
  EXPECT_EQ(code_of([&] { builder.add_copy(0, small, all.first(4)); }), ErrorCode::kInternal);
  builder.add(1500, {});
  builder.add(0, all.first(1000));
  try {
    static_cast<void>(builder.finish());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInternal);
    EXPECT_NE(std::string(error.what()).find("[512, 1024)"), std::string::npos) << error.what();
  }
  builder.add(1000, all.first(500));
  EXPECT_EQ(builder.finish().checksums.size(), 3U);
  EXPECT_EQ(code_of([&] { builder.add(1499, all.first(1)); }), ErrorCode::kInternal) << "a byte twice";
}

TEST(ChecksumTableTest, Blocks) {
  EXPECT_EQ(checksum_block_count(0, 512), 0U);
  EXPECT_EQ(checksum_block_count(1, 512), 1U);
  EXPECT_EQ(checksum_block_count(512, 512), 1U);
  EXPECT_EQ(checksum_block_count(513, 512), 2U);
  EXPECT_EQ(checksum_block_count(~0ULL, 512), (1ULL << 55));
  const ChecksumTable table{1300, 512, {1, 2, 3}};
  EXPECT_EQ(table.block_range(0), (ByteRange{0, 512}));
  EXPECT_EQ(table.block_range(2), (ByteRange{1024, 1300}));
  EXPECT_EQ(covering_blocks(table, {0, 1}), (ByteRange{0, 512}));
  EXPECT_EQ(covering_blocks(table, {511, 513}), (ByteRange{0, 1024}));
  EXPECT_EQ(covering_blocks(table, {512, 1024}), (ByteRange{512, 1024}));
  EXPECT_EQ(covering_blocks(table, {1200, 1300}), (ByteRange{1024, 1300}));
  EXPECT_EQ(covering_blocks(table, {700, 700}), (ByteRange{700, 700}));
}

TEST(FindMismatchesTest, LooksAtWholeBlocksOnly) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 1000; ++round) {
    auto [object, block_bytes] = random_case(random);
    if (object.empty()) continue;
    const ChecksumTable table = direct_table(object, block_bytes);
    const std::uint64_t flipped = random() % object.size();
    const std::uint64_t begin = random() % (object.size() + 1);
    const std::uint64_t end = begin + random() % (object.size() - begin + 1);
    ASSERT_TRUE(find_mismatches(table, begin, part(object, {begin, end})).empty());
    object[flipped] ^= static_cast<std::byte>(1U << random() % 8);
    const auto mismatches = find_mismatches(table, begin, part(object, {begin, end}));
    const std::uint64_t block = flipped / block_bytes;
    const ByteRange range = table.block_range(block);
    if (range.begin >= begin && range.end <= end) {
      ASSERT_EQ(mismatches.size(), 1U);
      ASSERT_EQ(mismatches[0], (BlockMismatch{range, table.checksums[block], crc32c(0, part(object, range))}));
    } else {
      ASSERT_TRUE(mismatches.empty());
    }
  }
}

TEST(ChecksumVerifierTest, FindsExactlyTheWrongBlocks) {
  std::mt19937_64 random(6);
  for (int round = 0; round < 400; ++round) {
    Case drawn = random_case(random);
    auto& object = drawn.object;
    const std::uint64_t block_bytes = drawn.block_bytes;
    const ChecksumTable table = direct_table(object, block_bytes);
    std::vector<ByteRange> wrong;
    for (std::size_t i = 0; i < random() % 4 && !object.empty(); ++i) {
      object[random() % object.size()] ^= static_cast<std::byte>(1U << random() % 8);
    }
    const ChecksumTable now = direct_table(object, block_bytes);
    for (std::size_t i = 0; i < table.checksums.size(); ++i) {
      if (now.checksums[i] != table.checksums[i]) wrong.push_back(table.block_range(i));
    }
    ChecksumVerifier verifier(table);
    std::mutex mutex;
    std::vector<ByteRange> found;
    std::vector<std::byte> copy(object.size());
    const auto pieces = random_pieces(random, object.size(), block_bytes, random() % 60);
    const auto work = [&](ByteRange piece) {
      const auto mismatches =
          piece.begin % 2 == 0
              ? verifier.add(piece.begin, part(object, piece))
              : verifier.add_copy(piece.begin, std::span(copy).subspan(piece.begin, piece.size()), part(object, piece));
      const std::lock_guard lock(mutex);
      for (const BlockMismatch& mismatch : mismatches) {
        const std::uint64_t block = mismatch.range.begin / block_bytes;
        EXPECT_EQ(mismatch.expected, table.checksums[block]);
        EXPECT_EQ(mismatch.found, now.checksums[block]);
        found.push_back(mismatch.range);
      }
    };
    if (round % 4 == 0) {
      on_threads(pieces, work);
    } else {
      std::for_each(pieces.begin(), pieces.end(), work);
    }
    std::sort(found.begin(), found.end(), [](ByteRange a, ByteRange b) { return a.begin < b.begin; });
    ASSERT_EQ(found, wrong);
    ASSERT_EQ(verifier.is_verified({0, object.size()}), wrong.empty());
    for (std::size_t i = 0; i < table.checksums.size(); ++i) {
      const ByteRange range = table.block_range(i);
      const bool right = std::find(wrong.begin(), wrong.end(), range) == wrong.end();
      ASSERT_EQ(verifier.is_verified({range.end - 1, range.end}), right);
    }
  }
}

TEST(ChecksumVerifierTest, SaysWhatIsWrong) {
  const std::vector<std::byte> bytes(600);
  ChecksumTable table = direct_table(bytes, 512);
  ChecksumVerifier verifier(table);
  EXPECT_TRUE(verifier.add(0, bytes).empty());
  EXPECT_EQ(code_of([&] { static_cast<void>(verifier.add(5, std::span(bytes).first(1))); }), ErrorCode::kInternal);
  EXPECT_EQ(code_of([&] { static_cast<void>(verifier.add(600, std::span(bytes).first(1))); }), ErrorCode::kInternal);
  std::vector<std::byte> small(3);
  EXPECT_EQ(code_of([&] { static_cast<void>(verifier.add_copy(0, small, bytes)); }), ErrorCode::kInternal);
  table.checksums.pop_back();
  EXPECT_EQ(code_of([&] { ChecksumVerifier{table}; }), ErrorCode::kInternal);
  EXPECT_EQ(to_string(BlockMismatch{{512, 600}, 0x1F, 0xABCDEF01}),
            "bytes [512, 600) have the CRC-32C 0xabcdef01, expected 0x0000001f");
}

}  // namespace
}  // namespace torchsnapshot
