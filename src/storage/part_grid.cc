#include "storage/part_grid.h"

#include <algorithm>

namespace torchsnapshot {
namespace {

constexpr std::uint64_t kMaxParts = 10'000;
constexpr std::uint64_t kStep = 1ULL << 20;

}  // namespace

PartGrid::PartGrid(std::uint64_t object_bytes, std::uint64_t part_bytes)
    : object_bytes_(object_bytes), part_bytes_(std::max<std::uint64_t>(part_bytes, 1)) {
  if (object_bytes_ / part_bytes_ >= kMaxParts) {
    const std::uint64_t least = (object_bytes_ - 1) / kMaxParts + 1;
    part_bytes_ = std::max(part_bytes_, (least - 1) / kStep * kStep + kStep);
  }
}

std::uint64_t PartGrid::count() const noexcept {
  return object_bytes_ == 0 ? 1 : (object_bytes_ - 1) / part_bytes_ + 1;
}

ByteRange PartGrid::range(std::uint64_t part) const noexcept {
  const std::uint64_t begin = part * part_bytes_;
  return {begin, begin + std::min(part_bytes_, object_bytes_ - begin)};
}

std::vector<PartPiece> PartGrid::cut(std::uint64_t offset, std::uint64_t size) const {
  std::vector<PartPiece> pieces;
  for (std::uint64_t done = 0; done < size;) {
    PartPiece piece;
    piece.part = (offset + done) / part_bytes_;
    const ByteRange part = range(piece.part);
    piece.in_part = offset + done - part.begin;
    piece.in_block = done;
    piece.size = std::min(size - done, part.size() - piece.in_part);
    piece.is_whole_part = piece.size == part.size();
    done += piece.size;
    pieces.push_back(piece);
  }
  return pieces;
}

}  // namespace torchsnapshot
