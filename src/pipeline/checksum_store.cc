#include "pipeline/checksum_store.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "core/take_id.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

/// 4 bytes for each MiB of data, and a hundred for each object: far above any real one.
constexpr std::uint64_t kMaxSidecarBytes = 4ULL << 30;

bool is_number(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

std::string checksum_location(std::string_view take_id, std::int64_t rank) {
  return ".torchsnapshot/" + std::string(take_id) + "/checksums-" + std::to_string(rank);
}

std::optional<std::string> checksum_location_of(std::string_view object) {
  constexpr std::string_view kData = "data/";
  if (!object.starts_with(kData)) return std::nullopt;
  object.remove_prefix(kData.size());
  const std::size_t slash = object.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  const std::string_view take_id = object.substr(0, slash);
  const std::string_view name = object.substr(slash + 1);
  const std::size_t dash = name.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const std::string_view rank = name.substr(0, dash);
  if (!is_take_id(take_id) || !is_number(rank) || !is_number(name.substr(dash + 1))) return std::nullopt;
  return ".torchsnapshot/" + std::string(take_id) + "/checksums-" + std::string(rank);
}

void ChecksumStore::load(const std::vector<std::string>& objects, Storage& storage, const IoOptions& options) {
  const std::lock_guard lock(mutex_);
  for (const std::string& object : objects) {
    const auto location = checksum_location_of(object);
    if (!location) continue;
    auto found = sidecars_.find(*location);
    if (found == sidecars_.end()) {
      std::optional<ChecksumTables> tables;
      try {
        tables = parse_checksums(storage.read_all(*location, kMaxSidecarBytes, options.stop), *location);
      } catch (const Error& error) {
        if (error.code() != ErrorCode::kNotFound) throw;
        if (options.on_notice) {
          options.on_notice("'" + *location +
                            "' is missing: the data it covers can't be verified (was the take told to "
                            "write no checksums, or was the snapshot copied without its hidden files?)");
        }
      }
      found = sidecars_.emplace(*location, std::move(tables)).first;
    }
    if (found->second && !found->second->contains(object)) {
      throw Error(ErrorCode::kCorrupt, "'" + *location + "' has no checksums for the object '" + object +
                                           "' that the manifest names: one of them was changed after the take");
    }
  }
}

const ChecksumTable* ChecksumStore::find(std::string_view object) const {
  const auto location = checksum_location_of(object);
  if (!location) return nullptr;
  const std::lock_guard lock(mutex_);
  const auto sidecar = sidecars_.find(*location);
  if (sidecar == sidecars_.end() || !sidecar->second) return nullptr;
  const auto table = sidecar->second->find(object);
  return table == sidecar->second->end() ? nullptr : &table->second;
}

}  // namespace torchsnapshot
