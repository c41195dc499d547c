// The checksums of a snapshot's objects, as they lie beside them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "integrity/checksum_sidecar.h"
#include "torchsnapshot/io_options.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// Where a take's rank puts the checksums of its objects.
std::string checksum_location(std::string_view take_id, std::int64_t rank);

/// The sidecar with the checksums of an object; nothing for an object that no take of ours wrote ("data/TAKE/RANK-N").
std::optional<std::string> checksum_location_of(std::string_view object);

/// Sidecars that were read. Tables stay where they are as long as the store. Thread-safe.
class ChecksumStore {
 public:
  /// Reads the sidecars of these objects, as far as that was not done yet. One that is missing is a notice: its objects
  /// can't be verified. Throws Error(kCorrupt) for a malformed one, and for one that lacks an object it should have.
  void load(const std::vector<std::string>& objects, Storage& storage, const IoOptions& options);
  /// The table of an object that was asked for, or null when there is none.
  [[nodiscard]] const ChecksumTable* find(std::string_view object) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::optional<ChecksumTables>, std::less<>> sidecars_;  ///< nothing: there is none
};

/// As find(); null also without a store: nothing is verified then.
inline const ChecksumTable* table_of(const ChecksumStore* checksums, std::string_view object) {
  return checksums == nullptr ? nullptr : checksums->find(object);
}

}  // namespace torchsnapshot
