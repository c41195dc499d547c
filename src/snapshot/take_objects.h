// Names of the objects of our takes, and their checksum sidecars all at once.
#pragma once

#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "integrity/checksum_sidecar.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// Folder of everything that the original never looks at.
inline constexpr std::string_view kSidecarFolder = ".torchsnapshot/";
/// Folder of the data of our takes.
inline constexpr std::string_view kDataFolder = "data/";

/// The id in "FOLDER/TAKE_ID/…", 32 hex digits; empty when the location is none of ours.
std::string_view take_id_of(std::string_view location, std::string_view folder = kDataFolder) noexcept;

/// True for names that can only mean what they say; a manifest may hold others, which are read but never removed.
bool is_plain_location(std::string_view location);

/// What the sidecars of some objects say.
struct LoadedChecksums {
  ChecksumTables tables;  ///< also of other objects that the same sidecars know
  struct Problem {
    std::string sidecar;
    Error error;
  };
  std::vector<Problem> problems;  ///< sidecars that are there and can't be used, or lack an object
};

/// Reads the sidecars of the objects at `locations`, and goes on where one can't be used (unlike ChecksumStore). One
/// that is absent is no problem: then its objects have no checksums. Throws only Error(kCancelled).
LoadedChecksums load_all_checksums(Storage& storage, std::span<const std::string> locations,
                                   const std::stop_token& stop);

}  // namespace torchsnapshot
