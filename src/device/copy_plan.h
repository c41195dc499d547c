// A range of a strided tensor's dense bytes as the copies that a DMA engine makes. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "torchsnapshot/tensor.h"

namespace torchsnapshot {

/// Rows of bytes: dense on the host, `pitch` bytes apart on the device.
struct CopyRect {
  std::int64_t device = 0;  ///< where the first row begins, in bytes from the view's data
  std::uint64_t host = 0;   ///< where it begins in the range
  std::uint64_t width = 0;  ///< bytes of a row
  std::uint64_t rows = 1;
  std::uint64_t pitch = 0;  ///< at least `width` when there are several rows
};

/// The bytes [begin, begin + size) of the view's row-major elements; both multiples of the element size. One for a
/// contiguous view.
std::vector<CopyRect> plan_copy(const TensorView& view, std::uint64_t begin, std::uint64_t size);

/// Whether a DMA engine copies the view well: it lies in rows of 256 bytes or more. A transposed matrix, or
/// channels_last, does not: every element would be a row.
bool lies_in_long_rows(const TensorView& view);

}  // namespace torchsnapshot
