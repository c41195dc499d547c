#include <algorithm>
#include <span>
#include <string>
#include <utility>

#include "manifest/metadata_seal.h"
#include "manifest/validate.h"
#include "snapshot/internal.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {

SnapshotMetadata load_metadata(Storage& storage, const std::stop_token& stop, bool verify,
                               std::optional<MetadataSeal>* seal) {
  const std::string name(kMetadataName);
  const std::string text = storage.read_all(name, kMaxMetadataBytes, stop);
  if (seal != nullptr) *seal = seal_of(std::string_view(text).substr(0, kSealHeadBytes));
  try {
    return parse_sealed_metadata(text, verify);
  } catch (const Error& error) {
    throw error.with_context(storage.url() + "/" + name);
  }
}

bool has_seal(Storage& storage, const std::stop_token& stop) {
  const std::string name(kMetadataName);
  const std::uint64_t size = storage.sizes(std::span(&name, 1), stop).front().value_or(0);
  std::string head(std::min<std::uint64_t>(size, kSealHeadBytes), '\0');
  storage.open(name, stop)->read(0, std::as_writable_bytes(std::span(head)));
  return seal_of(head).has_value();
}

Snapshot::Snapshot(const std::string& url, const StorageOptions& storage_options)
    : Snapshot(open_storage(url, storage_options)) {}

Snapshot::Snapshot(std::shared_ptr<Storage> storage)
    : storage_(std::move(storage)), cache_(std::make_shared<Cache>()) {}

std::shared_ptr<const SnapshotMetadata> Snapshot::metadata(bool verify) const {
  const std::lock_guard lock(cache_->mutex);
  if (!cache_->metadata) {
    try {
      cache_->metadata = std::make_shared<const SnapshotMetadata>(load_metadata(*storage_, {}, verify));
    } catch (const Error& error) {
      // What may not be looked at may well be whole.
      if (error.code() == ErrorCode::kPermissionDenied || error.code() == ErrorCode::kCancelled) {
        throw error.with_context("reading " + std::string(kMetadataName) + " of the snapshot");
      }
      // The first sentence is the original's; programs look for it.
      throw Error(ErrorCode::kNotASnapshot,
                  "Failed to read " + std::string(kMetadataName) +
                      ". Ensure path to snapshot is correct, otherwise snapshot is likely incomplete or corrupted. (" +
                      error.what() + ")",
                  error.sys_errno());
    }
  }
  return cache_->metadata;
}

namespace {

/// Whether these paths and what is below them are so much that all of the metadata is read in less time.
bool is_most(const ManifestIndex& index, const std::vector<std::string>& paths) {
  constexpr std::uint64_t kFewEntries = 16 * kIndexBlockEntries;  // the estimate is in blocks
  constexpr std::uint64_t kManyEntries = 1'000'000;               // the text of more is large
  if (index.entries() < kFewEntries || index.entries() >= kManyEntries) return false;
  std::uint64_t wanted = 0;
  for (const std::string& path : paths) wanted += index.estimate(path);
  return wanted > index.entries() / 2;
}

}  // namespace

std::shared_ptr<const SavedState> Snapshot::Cache::part(const Snapshot& snapshot, std::int64_t rank,
                                                        const std::vector<std::string>& paths, const IoOptions& io) {
  const std::lock_guard lock(mutex);
  if (metadata) return nullptr;  // all of it is here
  if (!index_is_known) {
    index = open_index(*snapshot.storage_, io.stop, io.on_notice);
    index_is_known = true;
  }
  if (!index) return nullptr;
  auto found = std::make_shared<SnapshotMetadata>();
  found->world_size = index->world_size();
  try {
    if (is_most(*index, paths)) return nullptr;
    for (const std::string& path : paths) {
      index->select(path, false, found->manifest);
      // A leaf needs no containers, which may name a million children.
      if (find_own_leaf(*found, rank, path)) continue;
      for (std::size_t at = path.find('/'); at != std::string::npos; at = path.find('/', at + 1)) {
        index->select(std::string_view(path).substr(0, at), false, found->manifest);
      }
      index->select(path, true, found->manifest);
    }
    validate(*found);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kCancelled) throw;
    index.reset();
    if (io.on_notice) {
      io.on_notice("the index of the metadata in " + snapshot.storage_->url() +
                   " can't be used, so all of the metadata is read instead: " + error.what());
    }
    return nullptr;
  }
  return std::make_shared<const SavedState>(std::move(found), rank);
}

std::shared_ptr<const SavedState> Snapshot::Cache::state(const Snapshot& snapshot, std::int64_t rank, bool verify) {
  auto saved = snapshot.metadata(verify);
  const std::lock_guard lock(mutex);
  std::shared_ptr<const SavedState>& state = states[rank];
  if (!state) state = std::make_shared<const SavedState>(std::move(saved), rank);
  return state;
}

}  // namespace torchsnapshot
