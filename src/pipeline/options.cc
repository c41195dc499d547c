#include "pipeline/options.h"

#include <algorithm>
#include <string>

#include "device/cuda_copies.h"
#include "exec/memory_budget.h"

namespace torchsnapshot {

std::uint64_t budget_or_default(const IoOptions& options) {
  return options.memory_budget_bytes != 0 ? options.memory_budget_bytes : default_memory_budget(1);
}

std::uint64_t budget_beside_ring(std::uint64_t budget) {
  const std::uint64_t chunks =
      std::clamp<std::uint64_t>(budget / 4 / CudaCopies::kChunkBytes, 1, CudaCopies::kMaxChunks);
  cuda_copies().set_limit(chunks);
  return budget - std::min(budget / 4, chunks * CudaCopies::kChunkBytes);
}

BlockSizes block_sizes(const Storage& storage) {
  BlockSizes sizes;
  const std::uint64_t wanted = storage.block_bytes();
  if (wanted >= sizes.min_direct && wanted % kBlockAlignment == 0) sizes.direct = wanted;
  sizes.staged = std::min(sizes.staged, sizes.direct);
  return sizes;
}

void pass_on_notices(Storage& storage, const IoOptions& options) {
  if (!options.on_notice) return;
  for (const std::string& notice : storage.take_notices()) options.on_notice(notice);
}

}  // namespace torchsnapshot
