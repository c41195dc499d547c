// Snapshots to look into, for the tests of verify, diff and prune.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "integrity/block_checksums.h"
#include "integrity/checksum_sidecar.h"
#include "pipeline/checksum_store.h"
#include "snapshot/take_objects.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {

inline std::shared_ptr<Storage> new_memory_storage() {
  static std::atomic<int> count{0};
  return open_memory_storage("inspect-test-" + std::to_string(count++));
}

/// Two tensors, primitives, an object.
struct SmallState {
  std::vector<float> weight = std::vector<float>(600);
  std::vector<std::int64_t> steps{1, 2, 3};
  double loss = 0.25;
  std::string object = "pickled";

  SmallState() { std::iota(weight.begin(), weight.end(), 1.0F); }
  [[nodiscard]] AppState app() {
    Dict model;
    model.items.emplace_back("w", TensorView::dense(weight.data(), DType::kFloat32, {20, 30}));
    Dict progress;
    progress.items.emplace_back("steps", TensorView::dense(steps.data(), DType::kInt64, {3}));
    progress.items.emplace_back("loss", loss);
    progress.items.emplace_back(
        "object",
        Opaque{.serializer = "torch_save", .type_name = "builtins.tuple", .bytes = SharedBytes::copy_of(object)});
    AppState state;
    state.emplace_back("model", std::move(model));
    state.emplace_back("progress", std::move(progress));
    return state;
  }
};

/// Every object that the metadata refers to.
inline std::vector<std::string> objects_of(Storage& storage) {
  std::vector<std::string> all;
  for (const std::string& location : storage.list("data/")) all.push_back(location);
  return all;
}

/// Writes the sidecar of what is there now, in small blocks.
inline void write_sidecar(Storage& storage, std::uint64_t block_bytes = kMinChecksumBlockBytes) {
  std::map<std::string, ChecksumTables> sidecars;
  for (const std::string& location : objects_of(storage)) {
    const std::string content = storage.read_all(location, UINT64_MAX, {});
    ChecksumBuilder builder(content.size(), block_bytes);
    builder.add(0, std::as_bytes(std::span(content)));
    sidecars[*checksum_location_of(location)].emplace(location, builder.finish());
  }
  for (const auto& [location, tables] : sidecars) storage.publish(location, serialize_checksums(tables));
}

/// Replaces an object by a changed one.
template <typename Change>
void change_object(Storage& storage, const std::string& location, Change change) {
  std::string content = storage.read_all(location, UINT64_MAX, {});
  change(content);
  storage.publish(location, content);
}

}  // namespace torchsnapshot
