// Do boxes tile a shape?
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "torchsnapshot/manifest.h"

namespace torchsnapshot {

enum class Tiling : std::uint8_t {
  kExact,        ///< every element lies in exactly one box
  kOverlap,      ///< some element lies in several
  kGap,          ///< some element lies in none
  kTooManyDims,  ///< the boxes differ in more dimensions than kMaxTiledDims: not decided
};

/// Most dimensions in which the boxes of one tensor may differ.
inline constexpr std::size_t kMaxTiledDims = 4;

/// Whether the boxes of `pieces` tile `shape`. The boxes have the rank of the shape and lie inside it, and its number
/// of elements fits 63 bits. O(n log n) for any boxes, however many and however placed.
Tiling check_tiling(std::span<const std::int64_t> shape, const std::vector<ShardEntry>& pieces);

}  // namespace torchsnapshot
