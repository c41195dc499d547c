// The sidecar that holds the checksum tables of a snapshot's objects, as bytes.
//
// All numbers are unsigned and little-endian. The bytes follow from the tables: equal tables give equal bytes.
//
//   offset  size  field
//   0       8     magic: the ASCII text "TSCRC32C"
//   8       4     version: 1
//   12      4     number of tables
//   16            the tables, one after the other
//   end-4   4     CRC-32C of all bytes before it
//
// A table. They ascend strictly by location, compared as bytes:
//
//   offset  size  field
//   0       8     size of the object in bytes, below 2^63
//   8       4     block size as a power of two: 9 to 30
//   12      4     L, bytes of the location
//   16      L     location of the object, relative to the snapshot's path
//   16+L    4·B   the CRC-32C of each block; B = ceil(object size / block size)
//
// Every later version keeps the magic, the place of the version and the CRC at the end.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "integrity/block_checksums.h"

namespace torchsnapshot {

/// Tables by the object's location.
using ChecksumTables = std::map<std::string, ChecksumTable, std::less<>>;

/// The sidecar's bytes. Throws Error(kInternal) for a table whose sizes contradict each other, and Error(kCorrupt) for
/// a location that leaves the snapshot. Pure, as parse_checksums.
std::string serialize_checksums(const ChecksumTables& tables);

/// The tables in `bytes`, the content of the sidecar `name`. Everything is validated before anything is allocated for
/// it. Throws Error(kCorrupt) for anything that serialize_checksums does not write, and Error(kUnsupported) for a later
/// version.
ChecksumTables parse_checksums(std::string_view bytes, std::string_view name);

}  // namespace torchsnapshot
