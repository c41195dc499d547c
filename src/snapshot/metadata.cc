#include <string>
#include <utility>

#include "snapshot/internal.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {

/// Far above any real manifest (10 million entries are about 3 GB), far below what would hurt.
constexpr std::uint64_t kMaxMetadataBytes = 8ULL << 30;

SnapshotMetadata load_metadata(Storage& storage, const std::stop_token& stop) {
  const std::string name(kMetadataName);
  const std::string text = storage.read_all(name, kMaxMetadataBytes, stop);
  try {
    return parse_metadata(text);
  } catch (const Error& error) {
    throw error.with_context(storage.url() + "/" + name);
  }
}

Snapshot::Snapshot(const std::string& url, const StorageOptions& storage_options)
    : storage_(open_storage(url, storage_options)) {}

Snapshot::Snapshot(std::shared_ptr<Storage> storage) : storage_(std::move(storage)) {}

std::shared_ptr<const SnapshotMetadata> Snapshot::metadata() const {
  const std::lock_guard lock(cache_->mutex);
  if (!cache_->metadata) {
    try {
      cache_->metadata = std::make_shared<const SnapshotMetadata>(load_metadata(*storage_, {}));
    } catch (const Error& error) {
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

}  // namespace torchsnapshot
