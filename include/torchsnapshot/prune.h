// Tidying up: removing a snapshot, and what dead takes left behind.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// Whether a take that has not committed may still do so.
enum class TakeLife : std::uint8_t {
  kDead,     ///< its process is gone, or nothing has happened for long
  kRunning,  ///< its process is there, or something happened lately
};

/// What a take wrote and the committed metadata does not refer to.
struct LeftOver {
  std::string take_id;                 ///< whose they are; empty for temporary files
  std::vector<std::string> locations;  ///< sorted
  /// Uploads that were begun and not completed, where the storage keeps them apart from objects.
  std::vector<UnfinishedObject> unfinished;
  std::uint64_t bytes = 0;                                      ///< of both
  std::optional<std::chrono::system_clock::time_point> newest;  ///< when something was written last
  TakeLife life = TakeLife::kRunning;
  std::string reason;  ///< for `life`, for people
};

struct PruneOptions {
  /// A take of which nothing was written for this long is dead, unless its process is known to live. 0: every take
  /// whose process is not known to live is; for when surely none is running.
  std::chrono::seconds older_than = std::chrono::hours(24);
  bool dry_run = false;  ///< only say what would be removed
};

struct PruneReport {
  std::vector<LeftOver> left_overs;  ///< by take
  std::size_t removed_objects = 0;   ///< or would be
  std::size_t removed_unfinished = 0;
  std::uint64_t removed_bytes = 0;
  std::vector<std::string> notices;  ///< what could not be looked at, and why
};

/// Removes what dead takes left at this place. How a dead take is told from a running one, and why what is committed is
/// safe, stands above the code in src/snapshot/prune.cc and in docs/cli.md. Throws Error(kCorrupt) when the metadata
/// can't be read, because then nothing is known; Error(kUnsupported) when the storage can't list, or tells no times and
/// `older_than` is not 0.
PruneReport prune(Storage& storage, const PruneOptions& options = {});

struct RemoveReport {
  std::size_t objects = 0;  ///< removed, metadata and checksum files included
  std::uint64_t bytes = 0;  ///< as far as the storage tells sizes
  /// Objects that lie beside it and belong to other takes (see prune).
  std::size_t remaining = 0;
};

/// Removes the snapshot: its metadata first, durably, so that at no moment metadata points to missing bytes; then its
/// objects. Throws Error(kNotASnapshot) when there is none, Error(kCorrupt) when the metadata can't be read. With
/// `force` such metadata is removed too; its objects are left for prune. With `dry_run` nothing is removed.
RemoveReport remove_snapshot(Storage& storage, bool force = false, bool dry_run = false);

}  // namespace torchsnapshot
