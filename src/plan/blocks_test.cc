#include "plan/blocks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "tensor/strided_copy.h"

namespace torchsnapshot {
namespace {

std::vector<std::byte> random_bytes(std::mt19937& random, std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

/// What an object's content must be: items at their offsets, zeros between.
struct Sample {
  WriteObject object;
  std::vector<std::byte> content;
  std::vector<std::unique_ptr<std::vector<std::byte>>> memory;
};

Sample random_object(std::mt19937& random) {
  Sample sample;
  std::uint64_t end = 0;
  for (auto items = random() % 12; items > 0; --items) {
    std::uint64_t offset = end + random() % 40;
    auto size = static_cast<std::uint64_t>(random() % 3 == 0 ? random() % 50000 : random() % 300);
    WriteItem item;
    item.path = "item";
    if (random() % 2 == 0) {
      sample.memory.push_back(std::make_unique<std::vector<std::byte>>(random_bytes(random, size)));
      item.source = SharedBytes(*sample.memory.back(), nullptr);
    } else {
      // A matrix of 4-byte elements, now and then transposed.
      const auto rows = static_cast<std::int64_t>(1 + random() % (random() % 3 == 0 ? 100 : 8));
      const auto columns = static_cast<std::int64_t>(1 + random() % (random() % 3 == 0 ? 100 : 8));
      size = static_cast<std::uint64_t>(rows * columns * 4);
      sample.memory.push_back(std::make_unique<std::vector<std::byte>>(random_bytes(random, size)));
      TensorView view = TensorView::dense(sample.memory.back()->data(), DType::kFloat32, {rows, columns});
      if (random() % 2 == 0) {
        std::swap(view.shape[0], view.shape[1]);
        std::swap(view.strides[0], view.strides[1]);
      }
      item.source = view;
    }
    if (random() % 2 == 0) {  // congruent
      offset += (reinterpret_cast<std::uintptr_t>(sample.memory.back()->data()) - offset) % kBlockAlignment;
    }
    item.offset = offset;
    item.size = size;
    sample.content.resize(offset + size);
    const auto out = std::span(sample.content).subspan(offset, size);
    if (const auto* bytes = std::get_if<SharedBytes>(&item.source)) {
      std::copy(bytes->span().begin(), bytes->span().end(), out.begin());
    } else {
      gather(std::get<TensorView>(item.source), 0, out);
    }
    end = offset + size;
    sample.object.items.push_back(std::move(item));
  }
  sample.object.size = end + random() % 20;
  sample.content.resize(sample.object.size);
  return sample;
}

/// Sizes of one to eight pages, so that small objects have many blocks.
BlockSizes random_sizes(std::mt19937& random) {
  return {.direct = kBlockAlignment << random() % 4,
          .staged = kBlockAlignment << random() % 4,
          .min_direct = 1 + random() % (3 * kBlockAlignment)};
}

bool crosses(ByteRange range, std::uint64_t step) {
  return range.begin / step != (range.end - 1) / step;
}

bool is_page_multiple(std::uint64_t value) {
  return value % kBlockAlignment == 0;
}

TEST(WriteBlocks, TileTheObjectAndCarryItsContent) {
  std::size_t direct_blocks = 0;
  for (unsigned seed = 0; seed < 1000; ++seed) {
    std::mt19937 random(seed);
    const Sample sample = random_object(random);
    const BlockSizes sizes = random_sizes(random);
    const bool direct_allowed = random() % 4 != 0;
    std::vector<std::byte> content(sample.object.size, std::byte{0xEE});
    std::uint64_t at = 0;
    for (const WriteBlock& block : write_blocks(sample.object, sizes, direct_allowed)) {
      ASSERT_EQ(block.range.begin, at) << "seed " << seed;
      ASSERT_GT(block.range.size(), 0U);
      ASSERT_TRUE(is_page_multiple(block.range.begin));
      ASSERT_TRUE(is_page_multiple(block.range.end) || block.range.end == sample.object.size);
      ASSERT_FALSE(crosses(block.range, block.direct != nullptr ? sizes.direct : sizes.staged));
      at = block.range.end;
      const auto out = std::span(content).subspan(block.range.begin, block.range.size());
      if (block.direct != nullptr) {
        ASSERT_TRUE(direct_allowed);
        ASSERT_TRUE(is_page_multiple(reinterpret_cast<std::uintptr_t>(block.direct)));
        ++direct_blocks;
        ASSERT_EQ(block.pieces.size(), 1U);
        std::memcpy(out.data(), block.direct, out.size());
        continue;
      }
      std::fill(out.begin(), out.end(), std::byte{0});
      for (const WritePiece& piece : block.pieces) {
        ASSERT_GE(piece.offset, block.range.begin);
        ASSERT_LE(piece.offset + piece.size, block.range.end);
        const auto place = std::span(content).subspan(piece.offset, piece.size);
        if (const auto* bytes = std::get_if<SharedBytes>(&piece.item->source)) {
          std::memcpy(place.data(), bytes->span().data() + piece.begin, piece.size);
        } else {
          gather(std::get<TensorView>(piece.item->source), piece.begin, place);
        }
      }
    }
    ASSERT_EQ(at, sample.object.size) << "seed " << seed;
    ASSERT_EQ(content, sample.content) << "seed " << seed;
  }
  EXPECT_GT(direct_blocks, 300U);
}

TEST(WriteBlocks, LazyOnesTileTheObjectAndEndWhereAddressesAreRound) {
  std::size_t direct_blocks = 0;
  for (unsigned seed = 0; seed < 500; ++seed) {
    std::mt19937 random(seed);
    const Sample sample = random_object(random);
    const BlockSizes sizes = random_sizes(random);
    std::uint64_t at = 0;
    const WriteBlock* before = nullptr;
    const auto blocks =
        lazy_write_blocks(sample.object, sizes, [](const WriteItem& item) { return item.size % 2 == 0; });
    for (const WriteBlock& block : blocks) {
      ASSERT_EQ(block.range.begin, at) << "seed " << seed;
      ASSERT_LE(block.range.size(), sizes.staged);
      at = block.range.end;
      if (block.direct != nullptr) {
        ++direct_blocks;
        const WritePiece& piece = block.pieces.at(0);
        ASSERT_EQ(piece.item->size % 2, 0U);
        ASSERT_EQ(std::memcmp(block.direct, sample.content.data() + block.range.begin, block.range.size()), 0);
        const auto address = reinterpret_cast<std::uintptr_t>(block.direct);
        ASSERT_FALSE(crosses({address, address + block.range.size()}, sizes.staged));
        const bool goes_on = before != nullptr && before->direct != nullptr && before->pieces.at(0).item == piece.item;
        ASSERT_TRUE(!goes_on || address % sizes.staged == 0);
      }
      before = &block;
    }
    ASSERT_EQ(at, sample.object.size) << "seed " << seed;
  }
  EXPECT_GT(direct_blocks, 100U);
}

TEST(WriteBlocks, TheInteriorOfLargeContiguousMemoryIsNotCopied) {
  constexpr std::uint64_t kPage = kBlockAlignment;
  alignas(kBlockAlignment) static std::byte memory[8 * kBlockAlignment];
  WriteObject object;
  object.size = 10 * kPage;
  const auto blocks_at = [&](std::uint64_t offset) {
    object.items = {{.path = "w",
                     .source = TensorView::dense(memory + 64, DType::kUInt8, {static_cast<std::int64_t>(6 * kPage)}),
                     .offset = offset,
                     .size = 6 * kPage}};
    return write_blocks(object, {.direct = 4 * kPage, .staged = 2 * kPage, .min_direct = kPage});
  };
  const auto blocks = blocks_at(kPage + 64);
  // The zeros and the head; five pages, cut at the fourth; the tail and the zeros behind it.
  ASSERT_EQ(blocks.size(), 5U);
  EXPECT_EQ(blocks[0].direct, nullptr);
  EXPECT_EQ(blocks[0].range, (ByteRange{0, 2 * kPage}));
  EXPECT_EQ(blocks[1].direct, memory + kPage);
  EXPECT_EQ(blocks[1].range, (ByteRange{2 * kPage, 4 * kPage}));
  EXPECT_EQ(blocks[2].range, (ByteRange{4 * kPage, 7 * kPage}));
  EXPECT_EQ(blocks[3].direct, nullptr);
  EXPECT_EQ(blocks[4].range, (ByteRange{8 * kPage, 10 * kPage}));
  for (const WriteBlock& block : blocks_at(kPage + 128)) EXPECT_EQ(block.direct, nullptr) << "not congruent";
}

/// Reads of random regions from an object of random bytes.
struct ReadSample {
  std::vector<std::byte> content;
  ObjectRead object;
  std::vector<std::unique_ptr<std::vector<std::byte>>> memory;

  explicit ReadSample(std::mt19937& random) : content(random_bytes(random, 100'000)) {
    object.location = "data/x";
    std::uint64_t begin = random() % 3 == 0 ? random() % 20'000 : 0;
    while (begin < 50'000 && random() % 20 != 0) {
      // A region of rows of a piece, some contiguous in the target, some not.
      const auto rows = static_cast<std::int64_t>(1 + random() % (random() % 2 == 0 ? 100 : 10));
      const auto columns = static_cast<std::int64_t>(1 + random() % (random() % 2 == 0 ? 120 : 20));
      const auto first = static_cast<std::int64_t>(random() % static_cast<unsigned>(columns));
      const Box region = random() % 2 == 0 ? Box::whole({rows, columns}) : Box{{0, first}, {rows, columns - first}};
      TensorRead read;
      read.path = "t";
      read.piece_shape = {rows, columns};
      read.region = region;
      memory.push_back(
          std::make_unique<std::vector<std::byte>>(static_cast<std::size_t>(rows * columns * 2) + 2 * kBlockAlignment));
      const ByteRange within = enclosing_range(read.piece_shape, region, DType::kInt16);
      read.piece_begin = within.begin;
      read.range = {begin + within.begin, begin + within.end};
      std::byte* target = memory.back()->data();
      if (random() % 2 == 0) {  // congruent
        target += (read.range.begin - reinterpret_cast<std::uintptr_t>(target)) % kBlockAlignment;
      }
      read.view = TensorView::dense(target, DType::kInt16, region.sizes);
      if (random() % 3 == 0 && region.sizes[1] == rows) std::swap(read.view.strides[0], read.view.strides[1]);
      object.tensors.push_back(read);
      if (random() % 5 != 0) begin += static_cast<std::uint64_t>(rows * columns * 2) + random() % 60;
      if (random() % 4 == 0) begin += random() % 9000;
    }
    std::stable_sort(object.tensors.begin(), object.tensors.end(),
                     [](const TensorRead& a, const TensorRead& b) { return a.range.begin < b.range.begin; });
  }
};

/// Element by element: the piece's bytes, then the region of it.
void expect_placed(const ReadSample& sample, unsigned seed) {
  for (const TensorRead& read : sample.object.tensors) {
    const std::uint64_t piece_at = read.range.begin - read.piece_begin;
    for (std::int64_t i = 0; i < read.region.sizes[0]; ++i) {
      for (std::int64_t j = 0; j < read.region.sizes[1]; ++j) {
        const auto source = static_cast<std::size_t>(
            static_cast<std::int64_t>(piece_at) +
            2 * ((read.region.offsets[0] + i) * read.piece_shape[1] + read.region.offsets[1] + j));
        const std::byte* target = read.view.data + 2 * (i * read.view.strides[0] + j * read.view.strides[1]);
        ASSERT_EQ(std::memcmp(sample.content.data() + source, target, 2), 0) << "seed " << seed;
      }
    }
  }
}

TEST(ReadBlocks, BringEveryByteToItsPlaceAndCoverChecksumBlocks) {
  std::size_t direct_blocks = 0;
  for (unsigned seed = 0; seed < 1000; ++seed) {
    std::mt19937 random(seed);
    const ReadSample sample(random);
    const BlockSizes sizes = random_sizes(random);
    const std::uint64_t checksum_bytes = random() % 3 == 0 ? 0 : std::uint64_t{512} << random() % 6;
    std::vector<std::uint8_t> is_read(sample.content.size(), 0);
    for (const ReadBlock& block :
         read_blocks(sample.object, sample.content.size(), checksum_bytes, random() % 50, sizes)) {
      ASSERT_GT(block.range.size(), 0U);
      ASSERT_FALSE(crosses(block.range, block.direct != nullptr ? sizes.direct : sizes.staged));
      for (std::uint64_t at = block.range.begin; at < block.range.end; ++at) {
        ASSERT_EQ(std::exchange(is_read[at], 1), 0) << "read twice, seed " << seed;
      }
      const auto bytes = std::span(sample.content).subspan(block.range.begin, block.range.size());
      if (block.direct != nullptr) {
        ++direct_blocks;
        ASSERT_EQ(block.pieces.size(), 1U);
        std::memcpy(block.direct, bytes.data(), bytes.size());
        continue;
      }
      for (const ReadPiece& piece : block.pieces) {
        const TensorRead& read = *piece.read;
        scatter(bytes.subspan(piece.range.begin - block.range.begin, piece.range.size()),
                read.piece_begin + piece.range.begin - read.range.begin, read.piece_shape, read.region, read.view);
      }
    }
    expect_placed(sample, seed);
    if (checksum_bytes == 0) continue;
    for (const TensorRead& read : sample.object.tensors) {
      const std::uint64_t begin = read.range.begin / checksum_bytes * checksum_bytes;
      const std::uint64_t end =
          std::min(sample.content.size(), (read.range.end + checksum_bytes - 1) / checksum_bytes * checksum_bytes);
      for (std::uint64_t at = begin; at < end; ++at) ASSERT_EQ(is_read[at], 1) << "seed " << seed;
    }
  }
  EXPECT_GT(direct_blocks, 500U);
}

TEST(ReadBlocks, PagesOfCongruentMemoryAreReadInPlace) {
  constexpr std::uint64_t kPage = kBlockAlignment;
  alignas(kBlockAlignment) static std::byte memory[8 * kBlockAlignment];
  ObjectRead object;
  const auto elements = static_cast<std::int64_t>(6 * kPage);
  object.tensors.push_back({.path = "w",
                            .range = {2 * kPage + 64, 8 * kPage + 64},
                            .piece_begin = 0,
                            .piece_shape = {elements},
                            .region = Box::whole({elements}),
                            .view = TensorView::dense(memory + 64, DType::kUInt8, {elements})});
  const BlockSizes sizes{.direct = 4 * kPage, .staged = 2 * kPage, .min_direct = kPage};
  const auto blocks = read_blocks(object, 9 * kPage, 0, 0, sizes);
  ASSERT_EQ(blocks.size(), 4U);
  EXPECT_EQ(blocks[0].range, (ByteRange{2 * kPage, 3 * kPage}));
  EXPECT_EQ(blocks[1].direct, memory + kPage);
  EXPECT_EQ(blocks[1].range, (ByteRange{3 * kPage, 4 * kPage}));
  EXPECT_EQ(blocks[2].range, (ByteRange{4 * kPage, 8 * kPage}));
  EXPECT_EQ(blocks[3].range, (ByteRange{8 * kPage, 9 * kPage}));
}

TEST(ReadBlocks, DoNotSplitElementsThatGoToADevice) {
  ObjectRead object;
  object.tensors.push_back({.path = "w",
                            .range = {3, 3 + 8 * 5000},
                            .piece_begin = 0,
                            .piece_shape = {5000},
                            .region = Box::whole({5000}),
                            .view = TensorView::dense(nullptr, DType::kFloat64, {5000})});
  object.tensors[0].view.device = DeviceType::kOther;
  const BlockSizes sizes{.direct = kBlockAlignment, .staged = kBlockAlignment, .min_direct = 1};
  std::uint64_t at = 0;
  for (const ReadBlock& block : read_blocks(object, 3 + 8 * 5000, 0, 0, sizes)) {
    ASSERT_EQ(block.range.begin, at);
    at = block.range.end;
    ASSERT_EQ(block.pieces.size(), 1U);
    EXPECT_EQ(block.pieces[0].range.size() % 8, 0U);
    EXPECT_EQ((block.pieces[0].range.begin - 3) % 8, 0U);
  }
  EXPECT_EQ(at, 3U + 8 * 5000);
}

}  // namespace
}  // namespace torchsnapshot
