// Copies between strided tensor memory and the dense byte stream that storage holds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "torchsnapshot/bytes.h"
#include "torchsnapshot/tensor.h"

namespace torchsnapshot {

/// The dense row-major bytes of `view`, from byte `begin` on: fills `out` (which must not reach past nbytes()).
/// Ranges may begin and end inside an element. CPU memory only.
void gather(const TensorView& view, std::uint64_t begin, std::span<std::byte> out);

/// The inverse, for a part of a larger dense tensor: `in` holds the bytes from `begin` on of the row-major
/// elements of a dense tensor of shape `source_shape`; those of them that lie in `region` (in that tensor's
/// coordinates, region.sizes == view.shape) go to their places in `view`; the others are skipped.
/// Ranges may begin and end inside an element. CPU memory only.
void scatter(std::span<const std::byte> in, std::uint64_t begin, std::span<const std::int64_t> source_shape,
             const Box& region, const TensorView& view);

/// The smallest byte range of a dense tensor of `source_shape` that holds all of `region` (not empty).
ByteRange enclosing_range(std::span<const std::int64_t> source_shape, const Box& region, DType dtype);

/// True when `region` is one unbroken run of bytes of a dense tensor of `source_shape`.
bool is_unbroken(std::span<const std::int64_t> source_shape, const Box& region);

}  // namespace torchsnapshot
