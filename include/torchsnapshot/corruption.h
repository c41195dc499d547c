// Bytes on storage that are not those that were written.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "torchsnapshot/bytes.h"

namespace torchsnapshot {

/// A checksum block of an object whose bytes have changed since they were written.
struct Corruption {
  std::vector<std::string> paths;  ///< "key/sub/path" of the entries that have bytes in it
  std::string location;            ///< of the object
  ByteRange range;                 ///< the block, in the object
  std::uint32_t expected = 0;      ///< CRC-32C
  std::uint32_t found = 0;         ///< CRC-32C
  friend bool operator==(const Corruption&, const Corruption&) = default;
};

/// For a message: "entry 'model/w': bytes [0, 1048576) of object 'data/…/0-0' have the CRC-32C 0x…, expected 0x…".
std::string to_string(const Corruption& corruption);

}  // namespace torchsnapshot
