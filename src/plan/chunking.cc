#include "plan/chunking.h"

#include <algorithm>
#include <cstddef>

#include "plan/write_plan.h"

namespace torchsnapshot {

std::vector<std::int64_t> chunk_rows(std::span<const std::int64_t> shape, DType dtype, std::uint64_t max_chunk_bytes) {
  const std::uint64_t bytes = dense_bytes(dtype, shape);
  if (shape.empty()) return {1};
  const auto rows = static_cast<std::uint64_t>(shape[0]);
  if (bytes <= max_chunk_bytes) return {shape[0]};
  const std::uint64_t chunks = bytes / max_chunk_bytes + (bytes % max_chunk_bytes != 0 ? 1 : 0);
  const std::uint64_t step = rows / chunks + (rows % chunks != 0 ? 1 : 0);
  std::vector<std::int64_t> sizes;
  sizes.reserve(rows / step + 1);
  for (std::uint64_t row = 0; row < rows; row += step) {
    sizes.push_back(static_cast<std::int64_t>(std::min(step, rows - row)));
  }
  return sizes;
}

std::vector<Box> chunk_boxes(const Dims& shape, DType dtype, std::uint64_t max_chunk_bytes) {
  if (shape.empty()) return {Box::whole(shape)};
  std::vector<Box> boxes;
  std::int64_t row = 0;
  for (const std::int64_t rows : chunk_rows(shape, dtype, max_chunk_bytes)) {
    Box box = Box::whole(shape);
    box.offsets[0] = row;
    box.sizes[0] = rows;
    boxes.push_back(std::move(box));
    row += rows;
  }
  return boxes;
}

std::vector<Box> subdivide_shard(const Dims& shape, const Box& shard, DType dtype, std::uint64_t max_shard_bytes) {
  const std::uint64_t bytes = dense_bytes(dtype, shard.sizes);
  if (bytes <= max_shard_bytes || shard.sizes.empty()) return {shard};
  const auto differs = std::mismatch(shard.sizes.begin(), shard.sizes.end(), shape.begin()).first;
  const auto d = static_cast<std::size_t>(differs == shard.sizes.end() ? 0 : differs - shard.sizes.begin());
  const std::int64_t size = shard.sizes[d];
  const std::uint64_t row_bytes = bytes / static_cast<std::uint64_t>(size);
  const auto step = static_cast<std::int64_t>(std::max<std::uint64_t>(max_shard_bytes / row_bytes, 1));
  std::vector<Box> boxes;
  for (std::int64_t row = 0; row < size; row += step) {
    Box box = shard;
    box.offsets[d] += row;
    box.sizes[d] = std::min(step, size - row);
    boxes.push_back(std::move(box));
    if (size - row <= step) break;  // so that row can't overflow
  }
  return boxes;
}

}  // namespace torchsnapshot
