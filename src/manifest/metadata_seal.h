// The checksum that metadata carries of itself.
//
// The original refuses fields that it doesn't know, but takes any version string. So the seal is the local part of the
// version: "0.2.0" becomes "0.2.0+crc32c.89abcdef", where the digits are the CRC-32C of the whole text with '0' for
// each of them. It is written with the metadata, atomically, and read with it.
#pragma once

#include <string>
#include <string_view>

#include "torchsnapshot/manifest.h"

namespace torchsnapshot {

/// As write_metadata, with a seal.
std::string write_sealed_metadata(const SnapshotMetadata& metadata);

/// As parse_metadata; the seal is checked, unless `verify` is false, and taken off the version. Throws Error(kCorrupt)
/// when it does not fit, and when metadata that refers to objects of ours has none. Metadata of others has none.
SnapshotMetadata parse_sealed_metadata(std::string_view text, bool verify = true);

}  // namespace torchsnapshot
