#include "plan/blocks.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <variant>

#include "plan/ranges.h"
#include "tensor/strided_copy.h"

namespace torchsnapshot {
namespace {

constexpr std::uint64_t round_down(std::uint64_t value, std::uint64_t step) noexcept {
  return value / step * step;
}
constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t step) noexcept {
  return round_down(value + step - 1, step);
}
/// The first multiple of `step` above `value`.
constexpr std::uint64_t next_multiple(std::uint64_t value, std::uint64_t step) noexcept {
  return round_down(value, step) + step;
}

bool is_congruent(const std::byte* memory, std::uint64_t offset) noexcept {
  return (reinterpret_cast<std::uintptr_t>(memory) - offset) % kBlockAlignment == 0;
}

constexpr std::uint64_t kMaxItemSize = 16;  ///< of an element

/// The whole pages of a range; empty at its begin when there are none.
ByteRange whole_pages(ByteRange range) noexcept {
  const std::uint64_t begin = round_up(range.begin, kBlockAlignment);
  const std::uint64_t end = round_down(range.end, kBlockAlignment);
  return begin < end ? ByteRange{begin, end} : ByteRange{range.begin, range.begin};
}

/// The memory that holds the item's bytes as they are, or null.
const std::byte* plain_memory(const WriteItem& item) {
  if (const auto* bytes = std::get_if<SharedBytes>(&item.source)) return bytes->span().data();
  const auto& view = std::get<TensorView>(item.source);
  return view.device == DeviceType::kCpu && view.is_contiguous() ? view.data : nullptr;
}

/// The blocks of one object, made from left to right.
class WriteCutter {
 public:
  /// `by_address`: direct blocks end at addresses that are multiples of sizes.staged.
  explicit WriteCutter(const BlockSizes& sizes, bool by_address = false) : sizes_(sizes), by_address_(by_address) {}

  /// Goes on to `end` through a buffer: with bytes of `item`, or zeros.
  void stage(std::uint64_t end, const WriteItem* item) {
    while (staged_.range.end < end) {
      const std::uint64_t begin = staged_.range.end;
      const std::uint64_t step = std::min(end, next_multiple(begin, sizes_.staged)) - begin;
      if (item != nullptr) {
        staged_.pieces.push_back({.item = item, .begin = begin - item->offset, .size = step, .offset = begin});
      }
      staged_.range.end += step;
      if (staged_.range.end % sizes_.staged == 0) flush();
    }
  }

  /// Goes on to `end` with bytes that lie in `memory`.
  void write_direct(std::uint64_t end, const WriteItem& item, const std::byte* memory) {
    flush();
    while (staged_.range.end < end) {
      const std::uint64_t begin = staged_.range.end;
      const std::uint64_t within = begin - item.offset;
      const ByteRange range{begin, std::min(end, next_cut(begin, memory + within))};
      blocks_.push_back({.range = range,
                         .direct = memory + within,
                         .pieces = {{.item = &item, .begin = within, .size = range.size(), .offset = begin}}});
      staged_.range = {range.end, range.end};
    }
  }

  std::vector<WriteBlock> finish() {
    flush();
    return std::move(blocks_);
  }

 private:
  /// Where a direct block from `begin` on, whose bytes lie at `memory`, ends at the latest.
  [[nodiscard]] std::uint64_t next_cut(std::uint64_t begin, const std::byte* memory) const noexcept {
    if (!by_address_) return next_multiple(begin, sizes_.direct);
    return begin + sizes_.staged - reinterpret_cast<std::uintptr_t>(memory) % sizes_.staged;
  }

  void flush() {
    if (staged_.range.size() == 0) return;
    const std::uint64_t end = staged_.range.end;
    blocks_.push_back(std::exchange(staged_, WriteBlock{.range = {end, end}, .direct = nullptr, .pieces = {}}));
  }

  const BlockSizes& sizes_;
  bool by_address_;
  std::vector<WriteBlock> blocks_;
  WriteBlock staged_;  ///< being filled; its range ends where the next byte goes
};

template <typename MayBeDirect>
std::vector<WriteBlock> cut_writes(const WriteObject& object, const BlockSizes& sizes, WriteCutter cutter,
                                   const MayBeDirect& may_be_direct) {
  for (const WriteItem& item : object.items) {
    cutter.stage(item.offset, nullptr);
    const ByteRange pages = whole_pages({item.offset, item.offset + item.size});
    const std::byte* memory = pages.size() >= sizes.min_direct && may_be_direct(item) ? plain_memory(item) : nullptr;
    if (memory != nullptr && is_congruent(memory, item.offset)) {
      cutter.stage(pages.begin, &item);
      cutter.write_direct(pages.end, item, memory);
    }
    cutter.stage(item.offset + item.size, &item);
  }
  cutter.stage(object.size, nullptr);
  return cutter.finish();
}

/// What is read of an object: the reads, extended to whole steps and joined where the gap is small. Ascending.
std::vector<ByteRange> needed_extents(const ObjectRead& object, std::uint64_t object_bytes, std::uint64_t step,
                                      std::uint64_t max_gap) {
  std::vector<ByteRange> extents;
  for (const TensorRead& read : object.tensors) {
    append_joined(extents, widened(read.range, step, object_bytes), max_gap);
  }
  return extents;
}

/// Bytes that are read to where they belong.
struct DirectRange {
  ByteRange range;
  const TensorRead* read = nullptr;
  std::byte* memory = nullptr;  ///< of range.begin
};

/// Ascending, and not overlapping each other or other reads.
std::vector<DirectRange> direct_ranges(const ObjectRead& object, std::uint64_t min_direct) {
  std::vector<DirectRange> ranges;
  std::uint64_t end_before = 0;
  for (std::size_t i = 0; i < object.tensors.size(); ++i) {
    const TensorRead& read = object.tensors[i];
    const bool alone = end_before <= read.range.begin &&
                       (i + 1 == object.tensors.size() || object.tensors[i + 1].range.begin >= read.range.end);
    end_before = std::max(end_before, read.range.end);
    if (!alone || read.range.size() < min_direct) continue;
    std::byte* memory = plain_target(read);
    if (memory == nullptr) continue;
    const ByteRange range = is_congruent(memory, read.range.begin) ? whole_pages(read.range) : read.range;
    if (range.size() < min_direct) continue;
    ranges.push_back({range, &read, memory + (range.begin - read.range.begin)});
  }
  return ranges;
}

/// Staged blocks: their reads are found by going along.
class ReadStager {
 public:
  ReadStager(const ObjectRead& object, const BlockSizes& sizes, std::vector<ReadBlock>& blocks)
      : object_(object), sizes_(sizes), blocks_(blocks) {}

  /// Reads `range` through buffers. Ranges come in ascending order.
  void stage(ByteRange range) {
    bool moved_down = false;  // a cut before, off the grid
    while (range.begin < range.end) {
      std::uint64_t end = next_multiple(range.begin, sizes_.staged);
      if (moved_down && end - range.begin < kMaxItemSize) end = range.begin + sizes_.staged;
      end = std::min(end, range.end);
      update_active(range.begin, end);
      const std::uint64_t cut = end < range.end ? between_elements(range.begin, end) : end;
      moved_down = moved_down || cut != end;
      end = cut;
      ReadBlock block{.range = {range.begin, end}, .direct = nullptr, .pieces = {}};
      for (const TensorRead* read : active_) {
        const ByteRange part{std::max(read->range.begin, block.range.begin), std::min(read->range.end, end)};
        if (part.begin < part.end) block.pieces.push_back({.read = read, .range = part});
      }
      blocks_.push_back(std::move(block));
      range.begin = end;
    }
  }

 private:
  /// active_ becomes the reads that touch [begin, end).
  void update_active(std::uint64_t begin, std::uint64_t end) {
    std::erase_if(active_, [begin](const TensorRead* read) { return read->range.end <= begin; });
    for (; next_ < object_.tensors.size() && object_.tensors[next_].range.begin < end; ++next_) {
      if (object_.tensors[next_].range.end > begin) active_.push_back(&object_.tensors[next_]);
    }
  }

  /// The last place from `cut` down that splits no element which goes to a device: those are copied as wholes. (The
  /// original packed tensors at any offset.)
  [[nodiscard]] std::uint64_t between_elements(std::uint64_t begin, std::uint64_t cut) const {
    for (const TensorRead* read : active_) {
      if (read->view.device == DeviceType::kCpu || cut <= read->range.begin || cut >= read->range.end) continue;
      const std::uint64_t place = cut - (cut - read->range.begin) % item_size(read->view.dtype);
      if (place > begin) cut = place;
    }
    return cut;
  }

  const ObjectRead& object_;
  const BlockSizes& sizes_;
  std::vector<ReadBlock>& blocks_;
  std::vector<const TensorRead*> active_;
  std::size_t next_ = 0;
};

}  // namespace

std::byte* plain_target(const TensorRead& read) {
  const TensorView& view = read.view;
  if (view.device != DeviceType::kCpu || !view.is_contiguous()) return nullptr;
  return is_unbroken(read.piece_shape, read.region) ? view.data : nullptr;
}

std::vector<WriteBlock> write_blocks(const WriteObject& object, const BlockSizes& sizes, bool direct_allowed) {
  return cut_writes(object, sizes, WriteCutter(sizes), [direct_allowed](const WriteItem&) { return direct_allowed; });
}

std::vector<WriteBlock> lazy_write_blocks(const WriteObject& object, const BlockSizes& sizes,
                                          const std::function<bool(const WriteItem& item)>& may_wait) {
  return cut_writes(object, sizes, WriteCutter(sizes, /*by_address=*/true), may_wait);
}

std::vector<ReadBlock> read_blocks(const ObjectRead& object, std::uint64_t object_bytes, std::uint64_t checksum_bytes,
                                   std::uint64_t max_gap, const BlockSizes& sizes) {
  std::vector<ReadBlock> blocks;
  ReadStager stager(object, sizes, blocks);
  const std::uint64_t step = std::max(kBlockAlignment, checksum_bytes);
  const std::vector<DirectRange> directs = direct_ranges(object, sizes.min_direct);
  auto direct = directs.begin();
  for (const ByteRange& extent : needed_extents(object, object_bytes, step, max_gap)) {
    std::uint64_t at = extent.begin;
    for (; direct != directs.end() && direct->range.begin < extent.end; ++direct) {
      stager.stage({at, direct->range.begin});
      for (at = direct->range.begin; at < direct->range.end;) {
        const ByteRange range{at, std::min(direct->range.end, next_multiple(at, sizes.direct))};
        blocks.push_back({.range = range,
                          .direct = direct->memory + (at - direct->range.begin),
                          .pieces = {{.read = direct->read, .range = range}}});
        at = range.end;
      }
    }
    stager.stage({at, extent.end});
  }
  return blocks;
}

}  // namespace torchsnapshot
