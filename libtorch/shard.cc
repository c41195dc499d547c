#include "libtorch/shard.h"

#include <torch/custom_class.h>

#include <utility>

#include "libtorch/tensor_leaf.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot::libtorch {
namespace {

struct ShardHolder final : torch::CustomClassHolder {
  explicit ShardHolder(Shard held) : shard(std::move(held)) {}
  Shard shard;
};

bool lies_within(const Shard& shard) {
  const auto dims = static_cast<std::size_t>(shard.tensor.dim());
  if (shard.shape.size() != dims || shard.offsets.size() != dims) return false;
  for (std::size_t d = 0; d < dims; ++d) {
    const std::int64_t size = shard.tensor.sizes()[d];
    if (shard.offsets[d] < 0 || size > shard.shape[d] || shard.offsets[d] > shard.shape[d] - size) return false;
  }
  return true;
}

}  // namespace

c10::IValue to_ivalue(Shard shard) {
  return c10::IValue::make_capsule(c10::make_intrusive<ShardHolder>(std::move(shard)));
}

bool is_shard(const c10::IValue& value) noexcept {
  return value.isCapsule() && dynamic_cast<const ShardHolder*>(value.toCapsule().get()) != nullptr;
}

const Shard& shard_of(const c10::IValue& value) {
  return static_cast<const ShardHolder*>(value.toCapsule().get())->shard;
}

ShardedTensor to_leaf(const Shard& shard, const std::string& path, bool writable) {
  if (!shard.tensor.defined() || !is_plain(shard.tensor)) {
    throw Error(
        ErrorCode::kUnsupported,
        "the shard '" + path + "' is no plain memory (undefined, meta, sparse, quantized, or a conj or neg view)");
  }
  if (!lies_within(shard)) {
    throw Error(
        ErrorCode::kInvalidArgument,
        "the shard '" + path + "' does not lie within its tensor: compare its offsets and sizes with the shape");
  }
  ShardedTensor leaf;
  leaf.dtype = *to_dtype(shard.tensor.scalar_type());
  leaf.shape = shard.shape;
  leaf.replicas = shard.replicas;
  Box box{.offsets = shard.offsets, .sizes = shard.tensor.sizes().vec()};
  leaf.shards.push_back({.box = std::move(box), .view = view_of(shard.tensor, leaf.dtype, writable)});
  return leaf;
}

Shard from_leaf(const ShardedTensor& leaf) {
  if (leaf.shards.size() != 1) throw Error(ErrorCode::kInternal, "a leaf with other shards than its target");
  return {.tensor = tensor_of(leaf.shards[0].view),
          .shape = leaf.shape,
          .offsets = leaf.shards[0].box.offsets,
          .replicas = leaf.replicas};
}

}  // namespace torchsnapshot::libtorch
