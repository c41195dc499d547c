// Shards in IValues.
#pragma once

#include <ATen/core/ivalue.h>

#include <string>

#include "torchsnapshot/torch.h"
#include "torchsnapshot/value.h"

namespace torchsnapshot::libtorch {

/// True for an IValue made by to_ivalue(Shard).
bool is_shard(const c10::IValue& value) noexcept;
const Shard& shard_of(const c10::IValue& value);

/// The leaf at `path`, which views the shard's tensor. Throws Error(kInvalidArgument) for a part that does not lie
/// within its whole, and Error(kUnsupported) for a tensor that is no plain memory.
ShardedTensor to_leaf(const Shard& shard, const std::string& path, bool writable);
/// The shard of a leaf made by to_leaf.
Shard from_leaf(const ShardedTensor& leaf);

}  // namespace torchsnapshot::libtorch
