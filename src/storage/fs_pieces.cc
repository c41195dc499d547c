#include "storage/fs_pieces.h"

#include <algorithm>

namespace torchsnapshot {
namespace {

std::uint64_t round_down(std::uint64_t value, std::uint64_t unit) noexcept {
  return value & ~(unit - 1);
}
std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) noexcept {
  return round_down(value + unit - 1, unit);
}

/// The pieces of one block, made from its start to its end.
class Cutter {
 public:
  Cutter(std::uint64_t offset, std::size_t size) : offset_(offset), end_(offset + size) {}

  /// Cuts from where the last piece ended to `end`, which may lie past the block's, into transfers of at most `limit`
  /// bytes that start at multiples of `unit`.
  void cut(Piece::Way way, std::uint64_t end, std::size_t limit, std::size_t unit) {
    std::uint64_t begin = round_down(offset_ + done_, unit);
    while (begin < end) {
      Piece piece;
      piece.way = way;
      piece.offset = begin;
      piece.size = std::min<std::uint64_t>(limit, end - begin);
      piece.at = done_;
      piece.skip = offset_ + done_ - begin;
      piece.useful = std::min(piece.offset + piece.size, end_) - (offset_ + done_);
      begin += piece.size;
      done_ += piece.useful;
      pieces_.push_back(piece);
    }
  }

  std::vector<Piece> take() { return std::move(pieces_); }

 private:
  const std::uint64_t offset_;
  const std::uint64_t end_;
  std::size_t done_ = 0;
  std::vector<Piece> pieces_;
};

}  // namespace

std::vector<Piece> cut_write(std::uint64_t offset, std::uint64_t address, std::size_t size, DirectAlign align,
                             PieceLimits limits) {
  const std::uint64_t end = offset + size;
  const std::uint64_t begin_whole = round_up(offset, align.offset);
  const std::uint64_t end_whole = round_down(end, align.offset);
  Cutter cutter(offset, size);
  if (begin_whole < end_whole) {
    const bool fits = (address + (begin_whole - offset)) % align.memory == 0;
    cutter.cut(Piece::Way::kBuffered, begin_whole, size, 1);
    cutter.cut(fits ? Piece::Way::kStraight : Piece::Way::kBounced, end_whole, fits ? limits.straight : limits.bounced,
               align.offset);
  }
  cutter.cut(Piece::Way::kBuffered, end, size, 1);
  return cutter.take();
}

std::vector<Piece> cut_read(std::uint64_t offset, std::uint64_t address, std::size_t size, DirectAlign align,
                            PieceLimits limits) {
  if (size == 0) return {};
  const std::uint64_t end = offset + size;
  const std::uint64_t begin_whole = round_up(offset, align.offset);
  const std::uint64_t end_whole = round_down(end, align.offset);
  Cutter cutter(offset, size);
  if (begin_whole < end_whole && (address + (begin_whole - offset)) % align.memory == 0) {
    cutter.cut(Piece::Way::kBounced, begin_whole, limits.bounced, align.offset);
    cutter.cut(Piece::Way::kStraight, end_whole, limits.straight, align.offset);
  }
  cutter.cut(Piece::Way::kBounced, round_up(end, align.offset), limits.bounced, align.offset);
  return cutter.take();
}

}  // namespace torchsnapshot
