// How an object is divided into the parts of a multipart upload. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "torchsnapshot/bytes.h"

namespace torchsnapshot {

/// A piece of a block that lies in one part.
struct PartPiece {
  std::uint64_t part = 0;     ///< index from 0
  std::uint64_t in_part = 0;  ///< where the piece begins in the part
  std::uint64_t in_block = 0;
  std::uint64_t size = 0;
  bool is_whole_part = false;
};

/// Parts of one size, the last one shorter. Some stores take no others.
class PartGrid {
 public:
  /// Parts of `part_bytes`, or larger where there would be more than the 10,000 that stores allow (then a multiple of
  /// 1 MiB).
  PartGrid(std::uint64_t object_bytes, std::uint64_t part_bytes);

  [[nodiscard]] std::uint64_t part_bytes() const noexcept { return part_bytes_; }
  /// At least 1; an empty object has one empty part.
  [[nodiscard]] std::uint64_t count() const noexcept;
  [[nodiscard]] ByteRange range(std::uint64_t part) const noexcept;
  /// The pieces of the block [offset, offset + size), which lies in the object, in order.
  [[nodiscard]] std::vector<PartPiece> cut(std::uint64_t offset, std::uint64_t size) const;

 private:
  std::uint64_t object_bytes_;
  std::uint64_t part_bytes_;
};

}  // namespace torchsnapshot
