// The inner loops of the strided copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace torchsnapshot {

/// One dimension of a box of elements that is copied: number of steps, and bytes from one step to the next in the
/// destination and in the source. Strides may be zero or negative.
struct CopyDim {
  std::int64_t size = 0;
  std::int64_t dst = 0;
  std::int64_t src = 0;
};

/// Copies the elements of `item` bytes of a box; `dst` and `src` are at its first element. Source and destination
/// don't overlap; where a zero stride makes destinations coincide, which element stays is not specified.
/// Nothing needs to be aligned.
void copy_box(std::byte* dst, const std::byte* src, std::size_t item, std::vector<CopyDim> dims);

}  // namespace torchsnapshot
