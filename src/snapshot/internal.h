// What take, restore and the tools share.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "manifest/metadata_seal.h"
#include "manifest/rank_view.h"
#include "pipeline/checksum_store.h"
#include "snapshot/metadata_index.h"
#include "torchsnapshot/manifest.h"
#include "torchsnapshot/snapshot.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// Far above any real manifest (10 million entries are about 6 GB), far below what would hurt. More is not written.
inline constexpr std::uint64_t kMaxMetadataBytes = 8ULL << 30;

/// Reads and validates the metadata of the snapshot in `storage`. Throws Error(kNotFound) when there is none. `verify`:
/// see parse_sealed_metadata.
/// `seal`: gets the seal, if the metadata has one.
SnapshotMetadata load_metadata(Storage& storage, const std::stop_token& stop, bool verify,
                               std::optional<MetadataSeal>* seal = nullptr);

/// The entries of `view` grouped by the first component of their paths, in the order of the manifest.
using KeyGroups = std::unordered_map<std::string_view, std::vector<const ViewEntry*>>;
KeyGroups entries_by_key(const RankView& view);

/// What one rank can restore.
struct SavedState {
  SavedState(std::shared_ptr<const SnapshotMetadata> saved, std::int64_t rank)
      : metadata(std::move(saved)), view(*metadata, rank), groups(entries_by_key(view)) {}

  std::shared_ptr<const SnapshotMetadata> metadata;
  RankView view;
  KeyGroups groups;
};

/// What a handle has read, so that the next read is fast.
struct Snapshot::Cache {
  std::shared_ptr<const SavedState> state(const Snapshot& snapshot, std::int64_t rank, bool verify);

  /// As state(), but of these paths (without rank) and what is below them only, by the metadata's index: without
  /// reading the metadata. Null when there is no index, or all of the metadata is here.
  std::shared_ptr<const SavedState> part(const Snapshot& snapshot, std::int64_t rank,
                                         const std::vector<std::string>& paths, const IoOptions& io);

  std::mutex mutex;
  std::shared_ptr<const SnapshotMetadata> metadata;
  std::unique_ptr<ManifestIndex> index;
  bool index_is_known = false;
  std::map<std::int64_t, std::shared_ptr<const SavedState>> states;  ///< by rank
  ChecksumStore checksums;
};

/// Whether the metadata in `storage`, which was read and found right, has a seal (manifest/metadata_seal.h).
bool has_seal(Storage& storage, const std::stop_token& stop);

}  // namespace torchsnapshot
