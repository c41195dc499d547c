// How large tensors are cut.
#pragma once

#include <cstdint>
#include <vector>

#include "torchsnapshot/tensor.h"

namespace torchsnapshot {

/// Boxes that tile `shape`, cut along dimension 0 by chunk_rows (plan/write_plan.h).
std::vector<Box> chunk_boxes(const Dims& shape, DType dtype, std::uint64_t max_chunk_bytes);

/// Boxes that tile `shard`, a part of a tensor of shape `shape`: itself when it has at most max_shard_bytes, else cut
/// along the first dimension that it does not span whole (or the first one) into as many whole rows as fit, at
/// least one.
std::vector<Box> subdivide_shard(const Dims& shape, const Box& shard, DType dtype, std::uint64_t max_shard_bytes);

}  // namespace torchsnapshot
