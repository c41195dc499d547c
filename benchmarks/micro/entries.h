// A state of many small tensors, for the benchmarks of what grows with their number.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "plan/write_plan.h"
#include "state/flatten.h"
#include "torchsnapshot/manifest.h"
#include "torchsnapshot/value.h"

namespace torchsnapshot::bench {

/// `count` tensors of 4 KiB, 64 to a dict, below "state". They share no memory; nobody reads it.
class ManyTensors {
 public:
  explicit ManyTensors(std::size_t count) : memory_(count * kBytes) {
    Dict root;
    for (std::size_t i = 0; i < count; ++i) {
      if (i % 64 == 0) root.items.emplace_back("layer_" + std::to_string(i / 64), Dict{});
      root.items.back().second.get_if<Dict>()->items.emplace_back(
          "param_" + std::to_string(i % 64),
          TensorView::dense(memory_.data() + i * kBytes, DType::kFloat32, {static_cast<std::int64_t>(kBytes) / 4}));
    }
    root_ = std::move(root);
  }

  [[nodiscard]] const Value& root() const { return root_; }
  [[nodiscard]] FlatState flat() const {
    FlatState state;
    flatten(root_, "state", state);
    return state;
  }
  [[nodiscard]] SnapshotMetadata metadata() const {
    SnapshotMetadata metadata;
    metadata.version = "0.2.0";
    metadata.manifest = plan_write(flat(), options()).manifest;
    return metadata;
  }
  [[nodiscard]] static WritePlanOptions options() {
    WritePlanOptions options;
    options.take_id = "0123456789abcdef";
    return options;
  }

 private:
  static constexpr std::size_t kBytes = 4096;
  std::vector<std::byte> memory_;
  Value root_ = Dict{};
};

}  // namespace torchsnapshot::bench
