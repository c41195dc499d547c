// Is what the metadata says possible? Pure; nothing is read from storage.
#pragma once

#include "torchsnapshot/manifest.h"

namespace torchsnapshot {

/// Most ranks that are believed.
inline constexpr std::int64_t kMaxWorldSize = std::int64_t{1} << 24;

/// Checks every entry on its own, and the pieces of sharded tensors across ranks. Afterwards all sizes and offsets are
/// non-negative, nothing that follows from them overflows 63 bits, every location stays inside the snapshot, byte
/// ranges fit the shapes, pieces lie inside their tensors and chunks tile theirs exactly, and every path begins with a
/// rank below world_size. Throws Error(kCorrupt), or kUnsupported for an unknown serializer, that names the entry. Time
/// is O(n log n) in the size of the metadata.
void validate(const SnapshotMetadata& metadata);

}  // namespace torchsnapshot
