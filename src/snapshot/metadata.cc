#include <algorithm>
#include <span>
#include <string>
#include <utility>

#include "manifest/metadata_seal.h"
#include "snapshot/internal.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {

/// Far above any real manifest (10 million entries are about 3 GB), far below what would hurt.
constexpr std::uint64_t kMaxMetadataBytes = 8ULL << 30;

SnapshotMetadata load_metadata(Storage& storage, const std::stop_token& stop, bool verify) {
  const std::string name(kMetadataName);
  const std::string text = storage.read_all(name, kMaxMetadataBytes, stop);
  try {
    return parse_sealed_metadata(text, verify);
  } catch (const Error& error) {
    throw error.with_context(storage.url() + "/" + name);
  }
}

bool has_seal(Storage& storage, const std::stop_token& stop) {
  constexpr std::uint64_t kHeadBytes = 256;  // the version comes first
  const std::string name(kMetadataName);
  const std::uint64_t size = storage.sizes(std::span(&name, 1), stop).front().value_or(0);
  std::string head(std::min(size, kHeadBytes), '\0');
  storage.open(name, stop)->read(0, std::as_writable_bytes(std::span(head)));
  return head.find("+crc32c.") != std::string::npos;
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

std::shared_ptr<const SavedState> Snapshot::Cache::state(const Snapshot& snapshot, std::int64_t rank, bool verify) {
  auto saved = snapshot.metadata(verify);
  const std::lock_guard lock(mutex);
  std::shared_ptr<const SavedState>& state = states[rank];
  if (!state) state = std::make_shared<const SavedState>(std::move(saved), rank);
  return state;
}

}  // namespace torchsnapshot
