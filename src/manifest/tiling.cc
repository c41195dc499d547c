#include "manifest/tiling.h"

#include <algorithm>
#include <array>
#include <cstddef>

namespace torchsnapshot {
namespace {

/// A corner of a box in the dimensions that vary, with the sign of its parity.
struct Corner {
  std::array<std::int64_t, kMaxTiledDims> at{};
  int sign = 1;
};

void add_corners(const Box& box, const std::vector<std::size_t>& dims, int sign, std::vector<Corner>& corners) {
  for (std::size_t mask = 0; mask < (std::size_t{1} << dims.size()); ++mask) {
    Corner corner{.at = {}, .sign = sign};
    for (std::size_t i = 0; i < dims.size(); ++i) {
      const std::size_t d = dims[i];
      const bool far = ((mask >> i) & 1) != 0;
      corner.at[i] = box.offsets[d] + (far ? box.sizes[d] : 0);
      if (far) corner.sign = -corner.sign;
    }
    corners.push_back(corner);
  }
}

}  // namespace

Tiling check_tiling(std::span<const std::int64_t> shape, const std::vector<ShardEntry>& pieces) {
  const auto total = static_cast<std::uint64_t>(element_count(shape));
  std::uint64_t covered = 0;
  std::vector<bool> varies(shape.size(), false);
  for (const ShardEntry& piece : pieces) {
    if (piece.box.empty()) continue;
    covered += static_cast<std::uint64_t>(element_count(piece.box.sizes));
    if (covered > total) return Tiling::kOverlap;
    for (std::size_t d = 0; d < shape.size(); ++d) varies[d] = varies[d] || piece.box.sizes[d] != shape[d];
  }
  if (covered < total) return Tiling::kGap;
  std::vector<std::size_t> dims;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (varies[d]) dims.push_back(d);
  }
  if (total == 0 || dims.empty()) return Tiling::kExact;
  if (dims.size() > kMaxTiledDims) return Tiling::kTooManyDims;

  // How many boxes hold an element is a function on the grid. Its difference along every dimension is +1 or -1 at the
  // corners of each box, and zero elsewhere; and the differences determine the function. So the boxes tile the shape if
  // and only if their signed corners add up to those of the whole.
  std::vector<Corner> corners;
  corners.reserve((pieces.size() + 1) << dims.size());
  for (const ShardEntry& piece : pieces) {
    if (!piece.box.empty()) add_corners(piece.box, dims, 1, corners);
  }
  add_corners(Box::whole({shape.begin(), shape.end()}), dims, -1, corners);
  std::sort(corners.begin(), corners.end(), [](const Corner& a, const Corner& b) { return a.at < b.at; });
  for (std::size_t i = 0; i < corners.size();) {
    int sum = 0;
    const std::size_t begin = i;
    for (; i < corners.size() && corners[i].at == corners[begin].at; ++i) sum += corners[i].sign;
    if (sum != 0) return Tiling::kOverlap;  // as many elements as the whole, but not each once
  }
  return Tiling::kExact;
}

}  // namespace torchsnapshot
