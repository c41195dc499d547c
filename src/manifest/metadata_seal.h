// The checksum that metadata carries of itself.
//
// The original refuses fields that it doesn't know, but takes any version string. So the seal is the local part of the
// version: "0.2.0" becomes "0.2.0+crc32c.89abcdef", where the digits are the CRC-32C of the whole text with '0' for
// each of them. It is written with the metadata, atomically, and read with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "torchsnapshot/manifest.h"

namespace torchsnapshot {

/// What the beginning of metadata says of it.
struct MetadataSeal {
  std::uint32_t crc = 0;
  std::string index_take;  ///< the id of the take that wrote an index of it (manifest_index.h); empty: there is none
};
inline constexpr std::size_t kSealHeadBytes = 256;

/// As write_metadata, with a seal. `index_take`: see MetadataSeal; the version is then
/// "0.2.0+index.TAKE_ID.crc32c.89abcdef".
std::string write_sealed_metadata(const SnapshotMetadata& metadata, std::string_view index_take = {});

/// The seal, as the first kSealHeadBytes tell it; nothing when there is none. Not checked.
std::optional<MetadataSeal> seal_of(std::string_view head);

/// As parse_metadata; the seal is checked, unless `verify` is false, and taken off the version. Throws Error(kCorrupt)
/// when it does not fit, and when metadata that refers to objects of ours has none. Metadata of others has none.
SnapshotMetadata parse_sealed_metadata(std::string_view text, bool verify = true);

}  // namespace torchsnapshot
