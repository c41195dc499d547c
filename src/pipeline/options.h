// What the write and the read pipeline, the only places where plans and storage meet, have in common.
#pragma once

#include <cstdint>

#include "plan/blocks.h"
#include "torchsnapshot/io_options.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// The memory budget that `options` asks for.
std::uint64_t budget_or_default(const IoOptions& options);

/// What of the budget is left when tensors are on CUDA devices: the pinned ring that they pass through takes the rest,
/// a quarter of the budget and 64 MiB at most (but one chunk of 4 MiB at least). Sets the limit of the ring.
std::uint64_t budget_beside_ring(std::uint64_t budget);

/// How blocks are cut for this storage.
BlockSizes block_sizes(const Storage& storage);

/// Hands what the storage has to tell to the observer.
void pass_on_notices(Storage& storage, const IoOptions& options);

}  // namespace torchsnapshot
