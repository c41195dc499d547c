#include "snapshot/metadata_index.h"

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <utility>

#include "manifest/metadata_seal.h"
#include "snapshot/take_objects.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot {

std::string index_location(std::string_view take_id) {
  return std::string(kSidecarFolder).append(take_id).append("/index");
}

std::unique_ptr<ManifestIndex> open_index(Storage& storage, const std::stop_token& stop, const NoticeFn& on_notice) {
  const std::string name(kMetadataName);
  std::uint64_t size = 0;
  std::optional<MetadataSeal> seal;
  try {
    size = storage.sizes(std::span(&name, 1), stop).front().value_or(0);
    if (size < kMinIndexedBytes) return nullptr;
    std::string head(std::min<std::uint64_t>(size, kSealHeadBytes), '\0');
    storage.open(name, stop)->read(0, std::as_writable_bytes(std::span(head)));
    seal = seal_of(head);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kCancelled) throw;
    return nullptr;  // who reads the metadata itself says what is wrong
  }
  if (!seal || seal->index_take.empty()) return nullptr;
  const std::string location = index_location(seal->index_take);
  try {
    const std::uint64_t bytes = storage.sizes(std::span(&location, 1), stop).front().value_or(0);
    std::shared_ptr<ObjectReader> reader = storage.open(location, stop);
    const auto read = [reader](std::uint64_t offset, std::uint64_t count) {
      std::string part(count, '\0');
      reader->read(offset, std::as_writable_bytes(std::span(part)));
      return part;
    };
    auto index = std::make_unique<ManifestIndex>(read, bytes, seal->index_take);
    if (index->identity() == MetadataIdentity{size, seal->crc}) return index;
    throw Error(ErrorCode::kCorrupt, "the index is of other metadata");
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kCancelled) throw;
    if (on_notice) {
      on_notice(storage.url() + "/" + location +
                " can't be used, so all of the metadata is read instead: " + error.what());
    }
    return nullptr;
  }
}

}  // namespace torchsnapshot
