// What one rank sees of a manifest.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "torchsnapshot/manifest.h"

namespace torchsnapshot {

/// An entry as a rank sees it, without the rank in its path. A sharded entry has the pieces of all ranks,
/// any other is the manifest's own. Valid as long as the view and the manifest.
struct ViewEntry {
  std::string path;
  const Entry* entry = nullptr;
};

/// The entries that belong to `rank` (docs/format.md, "Ranks"): its own, the replicated ones of rank 0, and the
/// sharded ones of all ranks, each with the pieces of every rank. A rank that did not exist at save time
/// starts from rank 0's containers.
class RankView {
 public:
  RankView(const SnapshotMetadata& metadata, std::int64_t rank);
  RankView(const RankView&) = delete;
  RankView& operator=(const RankView&) = delete;

  /// In the order of the manifest.
  [[nodiscard]] const std::vector<ViewEntry>& entries() const noexcept { return entries_; }
  /// The entry of that path, or null.
  [[nodiscard]] const Entry* find(std::string_view path) const noexcept;

 private:
  std::vector<ViewEntry> entries_;
  std::unordered_map<std::string_view, std::size_t> index_;  // into entries_; keys point into entries_' paths
  std::vector<std::unique_ptr<Entry>> merged_;
};

/// "RANK/rest" taken apart. Throws Error(kInvalidArgument) when the path does not begin with a rank.
std::pair<std::int64_t, std::string_view> split_rank(std::string_view path);

/// Global shape of a sharded entry: the largest offset + size in each dimension.
Dims global_shape(const ShardedTensorEntry& entry);

}  // namespace torchsnapshot
