#include "plan/blocks.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <random>
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
    const std::uint64_t offset = end + random() % 40;
    auto size = static_cast<std::uint64_t>(random() % 300);
    WriteItem item;
    item.path = "item";
    item.offset = offset;
    if (random() % 2 == 0) {
      sample.memory.push_back(std::make_unique<std::vector<std::byte>>(random_bytes(random, size)));
      item.source = SharedBytes(*sample.memory.back(), nullptr);
    } else {
      // A matrix of 4-byte elements, now and then transposed.
      const auto rows = static_cast<std::int64_t>(1 + random() % 8);
      const auto columns = static_cast<std::int64_t>(1 + random() % 8);
      size = static_cast<std::uint64_t>(rows * columns * 4);
      sample.memory.push_back(std::make_unique<std::vector<std::byte>>(random_bytes(random, size)));
      TensorView view = TensorView::dense(sample.memory.back()->data(), DType::kFloat32, {rows, columns});
      if (random() % 2 == 0) {
        std::swap(view.shape[0], view.shape[1]);
        std::swap(view.strides[0], view.strides[1]);
      }
      item.source = view;
    }
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

TEST(WriteBlocks, TileTheObjectAndCarryItsContent) {
  for (unsigned seed = 0; seed < 1000; ++seed) {
    std::mt19937 random(seed);
    const Sample sample = random_object(random);
    const std::uint64_t block_bytes = 16 + random() % 200;
    const std::uint64_t direct_bytes = 1 + random() % 150;
    std::vector<std::byte> content(sample.object.size, std::byte{0xEE});
    std::uint64_t at = 0;
    for (const WriteBlock& block : write_blocks(sample.object, block_bytes, direct_bytes)) {
      ASSERT_EQ(block.range.begin, at) << "seed " << seed;
      ASSERT_GT(block.range.size(), 0U);
      ASSERT_LE(block.range.size(), block_bytes);
      at = block.range.end;
      const auto out = std::span(content).subspan(block.range.begin, block.range.size());
      if (block.direct != nullptr) {
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
}

TEST(WriteBlocks, LargeContiguousMemoryIsNotCopied) {
  std::vector<std::byte> memory(1000);
  WriteObject object;
  object.size = 1064;
  object.items.push_back(
      {.path = "w", .source = TensorView::dense(memory.data(), DType::kUInt8, {1000}), .offset = 64, .size = 1000});
  const auto blocks = write_blocks(object, 400, 100);
  ASSERT_EQ(blocks.size(), 4U);
  EXPECT_EQ(blocks[0].direct, nullptr);  // the padding
  EXPECT_EQ(blocks[1].direct, memory.data());
  EXPECT_EQ(blocks[3].direct, memory.data() + 800);
}

TEST(ReadBlocks, BringEveryByteToItsPlace) {
  for (unsigned seed = 0; seed < 1000; ++seed) {
    std::mt19937 random(seed);
    const std::vector<std::byte> content = random_bytes(random, 4000);
    ObjectRead object;
    object.location = "data/x";
    std::vector<std::unique_ptr<std::vector<std::byte>>> memory;
    std::uint64_t begin = 0;
    while (begin < 3000 && random() % 20 != 0) {
      // A region of rows of a piece, some contiguous in the target, some not.
      const auto rows = static_cast<std::int64_t>(1 + random() % 10);
      const auto columns = static_cast<std::int64_t>(1 + random() % 20);
      const auto first = static_cast<std::int64_t>(random() % static_cast<unsigned>(columns));
      const bool whole = random() % 2 == 0;
      const Box region = whole ? Box::whole({rows, columns}) : Box{{0, first}, {rows, columns - first}};
      TensorRead read;
      read.path = "t";
      read.piece_shape = {rows, columns};
      read.region = region;
      memory.push_back(std::make_unique<std::vector<std::byte>>(static_cast<std::size_t>(rows * columns * 2)));
      read.view = TensorView::dense(memory.back()->data(), DType::kInt16, region.sizes);
      if (random() % 3 == 0 && region.sizes[1] == rows) std::swap(read.view.strides[0], read.view.strides[1]);
      const ByteRange within = enclosing_range(read.piece_shape, region, DType::kInt16);
      read.piece_begin = within.begin;
      read.range = {begin + within.begin, begin + within.end};
      object.tensors.push_back(read);
      if (random() % 5 != 0) begin += static_cast<std::uint64_t>(rows * columns * 2) + random() % 60;
    }
    std::stable_sort(object.tensors.begin(), object.tensors.end(),
                     [](const TensorRead& a, const TensorRead& b) { return a.range.begin < b.range.begin; });
    const std::uint64_t block_bytes = 500 + random() % 500;
    std::size_t pieces = 0;
    for (const ReadBlock& block : read_blocks(object, block_bytes, 1 + random() % 300, random() % 50)) {
      ASSERT_LE(block.range.size(), block_bytes);
      const auto bytes = std::span(content).subspan(block.range.begin, block.range.size());
      pieces += block.pieces.size();
      if (block.direct != nullptr) {
        std::memcpy(block.direct, bytes.data(), bytes.size());
        continue;
      }
      for (const ReadPiece& piece : block.pieces) {
        const TensorRead& read = *piece.read;
        scatter(bytes.subspan(piece.range.begin - block.range.begin, piece.range.size()),
                read.piece_begin + piece.range.begin - read.range.begin, read.piece_shape, read.region, read.view);
      }
    }
    ASSERT_GE(pieces, object.tensors.size());
    for (const TensorRead& read : object.tensors) {
      // Reference: the piece's bytes, then the region of it, element by element.
      const std::uint64_t piece_at = read.range.begin - read.piece_begin;
      for (std::int64_t i = 0; i < read.region.sizes[0]; ++i) {
        for (std::int64_t j = 0; j < read.region.sizes[1]; ++j) {
          const auto source = static_cast<std::size_t>(
              static_cast<std::int64_t>(piece_at) +
              2 * ((read.region.offsets[0] + i) * read.piece_shape[1] + read.region.offsets[1] + j));
          const std::byte* target = read.view.data + 2 * (i * read.view.strides[0] + j * read.view.strides[1]);
          ASSERT_EQ(std::memcmp(content.data() + source, target, 2), 0) << "seed " << seed;
        }
      }
    }
  }
}

}  // namespace
}  // namespace torchsnapshot
