// The state of one rank of many that train a model of 405 billion parameters: real shapes, no memory behind them.
#pragma once

#include <cstdint>
#include <string>

#include "torchsnapshot/value.h"

namespace torchsnapshot::scale {

/// FSDP within groups of `fsdp`, tensor parallel within `tp`, and `replicas` groups that hold the same. Rank =
/// (replica, FSDP, TP), TP the fastest.
struct World {
  std::int64_t tp = 8;
  std::int64_t fsdp = 128;
  std::int64_t replicas = 1;
  [[nodiscard]] std::int64_t size() const { return tp * fsdp * replicas; }
};

struct Model {
  std::int64_t layers = 126;
  std::int64_t hidden = 16384;
  std::int64_t ffn = 53248;
  std::int64_t heads = 128;
  std::int64_t kv_heads = 8;
  std::int64_t vocab = 128256;
};

/// bf16 parameters and two fp32 moments of each, sharded; progress (which every rank has), and this rank's own random
/// state. `step` is in the progress.
AppState state_of(const World& world, const Model& model, std::int64_t rank, std::int64_t step);

/// Tensors in it that are sharded.
std::int64_t sharded_tensors(const Model& model);

}  // namespace torchsnapshot::scale
