// Cached bytes of a file where they lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "storage/fs_buffered.h"
#include "torchsnapshot/bytes.h"

namespace torchsnapshot {

/// Maps a range of the file that is wholly in the page cache; nothing where it is not, or can't be mapped. The caller
/// has seen that the file is of a local file system (Sys::is_local) and may be asked about (`is_ours`, as for
/// cached_bytes). Memory that is mapped from a file has no errors, only SIGBUS: so the pages are there before anybody
/// looks, and what is left is a file that somebody cuts off within the milliseconds that a view is used.
std::optional<SharedBytes> view_cached(const OpenObject& object, std::uint64_t offset, std::size_t size, bool is_ours);

}  // namespace torchsnapshot
