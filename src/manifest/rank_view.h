// What one rank sees of a manifest.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
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
  /// The rank itself saved nothing here: another rank's shards, a replicated entry of rank 0, or a container that is
  /// there only because of shards of other ranks. Leave such a container out with the last of its leaves.
  bool added = false;
};

/// The entries that belong to `rank` (docs/format.md, "Ranks"): its own, the replicated ones of rank 0, and the
/// sharded ones of all ranks, each with the pieces of every rank. A rank that did not exist at save time
/// starts from rank 0's containers, without the keys of what was private to rank 0.
/// What the rank did not save is added to the keys of its dicts; containers it lacks are made as the saving rank
/// has them, with these children only. A shard that fits nowhere (below a leaf of this rank, or leaving a hole in a
/// list) is not in the view. Of shards with the same box one is kept.
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

/// The leaf that the view of `rank` shows at `path`, if the manifest alone tells, without a view being made: one that
/// the rank saved itself, and that is in one piece. Nothing for what is not there, for containers, for sharded tensors,
/// and for a rank that did not exist: those need the view. A look-up, however large the manifest is. Valid as long as
/// the manifest.
std::optional<ViewEntry> find_own_leaf(const SnapshotMetadata& metadata, std::int64_t rank, std::string_view path);

/// "RANK/rest" taken apart. Throws Error(kInvalidArgument) when the path does not begin with a rank.
std::pair<std::int64_t, std::string_view> split_rank(std::string_view path);

/// Global shape of a sharded entry: the largest offset + size in each dimension. Throws Error(kCorrupt) when it has no
/// shards.
Dims global_shape(const ShardedTensorEntry& entry);

}  // namespace torchsnapshot
