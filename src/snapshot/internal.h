// What take and restore share.
#pragma once

#include <stop_token>

#include "torchsnapshot/manifest.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// Reads and validates the metadata of the snapshot in `storage`. Throws Error(kNotFound) when there is none.
SnapshotMetadata load_metadata(Storage& storage, const std::stop_token& stop);

}  // namespace torchsnapshot
