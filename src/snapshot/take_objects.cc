#include "snapshot/take_objects.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>

#include "core/take_id.h"
#include "pipeline/checksum_store.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot {
namespace {

/// Far above any real sidecar (4 bytes for each MiB of data).
constexpr std::uint64_t kMaxSidecarBytes = 4ULL << 30;

Error lacks(std::string_view sidecar, std::string_view object) {
  std::string message("'");
  message.append(sidecar).append("' has no checksums for the object '").append(object);
  message.append("' that the manifest names: one of them was changed after the take");
  return {ErrorCode::kCorrupt, message};
}

}  // namespace

std::string_view take_id_of(std::string_view location, std::string_view folder) noexcept {
  if (!location.starts_with(folder)) return {};
  location.remove_prefix(folder.size());
  if (location.size() <= kTakeIdDigits || location[kTakeIdDigits] != '/') return {};
  const std::string_view id = location.substr(0, kTakeIdDigits);
  return is_take_id(id) ? id : std::string_view{};
}

bool is_plain_location(std::string_view location) {
  if (location == kMetadataName) return false;
  for (std::size_t begin = 0; begin <= location.size();) {
    const std::size_t end = std::min(location.find('/', begin), location.size());
    const std::string_view component = location.substr(begin, end - begin);
    if (component.empty() || component == "." || component == "..") return false;
    begin = end + 1;
  }
  return true;
}

LoadedChecksums load_all_checksums(Storage& storage, std::span<const std::string> locations,
                                   const std::stop_token& stop) {
  std::map<std::string, std::vector<std::string>> sidecars;  // with their objects
  for (const std::string& location : locations) {
    if (auto sidecar = checksum_location_of(location)) sidecars[*std::move(sidecar)].push_back(location);
  }
  LoadedChecksums loaded;
  for (const auto& [sidecar, objects] : sidecars) {
    try {
      ChecksumTables tables = parse_checksums(storage.read_all(sidecar, kMaxSidecarBytes, stop), sidecar);
      for (const std::string& object : objects) {
        if (tables.contains(object)) continue;
        loaded.problems.push_back({sidecar, lacks(sidecar, object)});
      }
      loaded.tables.merge(tables);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kCancelled) throw;
      if (error.code() != ErrorCode::kNotFound) loaded.problems.push_back({sidecar, error});
    }
  }
  return loaded;
}

}  // namespace torchsnapshot
