// The index beside the metadata (manifest/manifest_index.h), on storage.
#pragma once

#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>

#include "manifest/manifest_index.h"
#include "torchsnapshot/io_options.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// ".torchsnapshot/TAKE_ID/index".
std::string index_location(std::string_view take_id);

/// Metadata that is smaller is read as fast as an index.
inline constexpr std::uint64_t kMinIndexedBytes = 64 << 10;

/// The index of the metadata in `storage`; null when it has none, or is not there. One that is damaged, or of other
/// metadata, is not used, with a notice: the metadata says the same.
std::unique_ptr<ManifestIndex> open_index(Storage& storage, const std::stop_token& stop, const NoticeFn& on_notice);

}  // namespace torchsnapshot
