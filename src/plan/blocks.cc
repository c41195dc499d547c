#include "plan/blocks.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "tensor/strided_copy.h"

namespace torchsnapshot {
namespace {

/// The memory that holds the item's bytes as they are, or null.
const std::byte* plain_memory(const WriteItem& item) {
  if (const auto* bytes = std::get_if<SharedBytes>(&item.source)) return bytes->span().data();
  const auto& view = std::get<TensorView>(item.source);
  return view.device == DeviceType::kCpu && view.is_contiguous() ? view.data : nullptr;
}

/// The memory that takes the read's bytes as they are, or null.
std::byte* plain_target(const TensorRead& read) {
  const TensorView& view = read.view;
  if (view.device != DeviceType::kCpu || !view.is_contiguous()) return nullptr;
  return is_unbroken(read.piece_shape, read.region) ? view.data : nullptr;
}

}  // namespace

std::vector<WriteBlock> write_blocks(const WriteObject& object, std::uint64_t block_bytes, std::uint64_t direct_bytes) {
  std::vector<WriteBlock> blocks;
  WriteBlock staged;  // the block being filled; its range ends where the next byte goes

  // Goes on to `end` with zeros or the bytes of a piece, closing full blocks on the way.
  const auto flush = [&] {
    if (staged.range.size() == 0) return;
    const std::uint64_t end = staged.range.end;
    blocks.push_back(std::move(staged));
    staged = WriteBlock{.range = {end, end}, .direct = nullptr, .pieces = {}};
  };
  const auto extend = [&](std::uint64_t end, const WriteItem* item) {
    while (staged.range.end < end) {
      const std::uint64_t room = block_bytes - staged.range.size();
      const std::uint64_t step = std::min(room, end - staged.range.end);
      if (item != nullptr) {
        staged.pieces.push_back(
            {.item = item, .begin = staged.range.end - item->offset, .size = step, .offset = staged.range.end});
      }
      staged.range.end += step;
      if (staged.range.size() == block_bytes) flush();
    }
  };

  for (const WriteItem& item : object.items) {
    extend(item.offset, nullptr);
    const std::byte* memory = item.size >= direct_bytes ? plain_memory(item) : nullptr;
    if (memory == nullptr) {
      extend(item.offset + item.size, &item);
      continue;
    }
    flush();
    for (std::uint64_t begin = 0; begin < item.size; begin += block_bytes) {
      const std::uint64_t end = std::min(begin + block_bytes, item.size);
      blocks.push_back(
          {.range = {item.offset + begin, item.offset + end},
           .direct = memory + begin,
           .pieces = {{.item = &item, .begin = begin, .size = end - begin, .offset = item.offset + begin}}});
    }
    staged.range = {item.offset + item.size, item.offset + item.size};
  }
  extend(object.size, nullptr);
  flush();
  return blocks;
}

std::vector<ReadBlock> read_blocks(const ObjectRead& object, std::uint64_t block_bytes, std::uint64_t direct_bytes,
                                   std::uint64_t max_gap) {
  std::vector<ReadBlock> blocks;
  ReadBlock shared;
  const auto flush = [&] {
    if (!shared.pieces.empty()) blocks.push_back(std::exchange(shared, {}));
  };
  for (const TensorRead& read : object.tensors) {
    if (read.range.size() >= direct_bytes) {
      // Large: blocks of its own, straight into the memory if that is possible.
      flush();
      std::byte* memory = plain_target(read);
      for (std::uint64_t begin = read.range.begin; begin < read.range.end; begin += block_bytes) {
        const ByteRange range{begin, std::min(begin + block_bytes, read.range.end)};
        blocks.push_back({.range = range,
                          .direct = memory == nullptr ? nullptr : memory + (begin - read.range.begin),
                          .pieces = {{.read = &read, .range = range}}});
      }
      continue;
    }
    // Reads come in the order of their begin; they may overlap (tied weights).
    const bool joins = !shared.pieces.empty() && read.range.begin <= shared.range.end + max_gap &&
                       std::max(shared.range.end, read.range.end) - shared.range.begin <= block_bytes;
    if (!joins) {
      flush();
      shared.range = read.range;
    }
    shared.range.end = std::max(shared.range.end, read.range.end);
    shared.pieces.push_back({.read = &read, .range = read.range});
  }
  flush();
  return blocks;
}

}  // namespace torchsnapshot
