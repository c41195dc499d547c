// The two forms of metadata. Both check the form only; parse_metadata (manifest.h) validates too.
#pragma once

#include <string_view>

#include "torchsnapshot/manifest.h"

namespace torchsnapshot {

/// Throws Error(kCorrupt) with line, column and entry for anything but well-formed metadata.
SnapshotMetadata read_json_metadata(std::string_view text);

/// As read_json_metadata, for the YAML that versions before JSON wrote. Throws Error(kUnsupported) in a build
/// without yaml-cpp.
SnapshotMetadata read_yaml_metadata(std::string_view text);

}  // namespace torchsnapshot
