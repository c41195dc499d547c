#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/path_codec.h"
#include "manifest/rank_view.h"
#include "snapshot/internal.h"
#include "snapshot/stored_tensor.h"
#include "snapshot/take_objects.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/inspect.h"

namespace torchsnapshot {
namespace {

void add(Totals& totals, std::uint64_t bytes) {
  ++totals.entries;
  totals.bytes += bytes;
}

std::string writer_of(const SnapshotSummary& summary, bool has_foreign_locations) {
  // Ours are the only ones that name their objects so; a snapshot without objects has only its version to tell.
  if (!summary.take_ids.empty() && !has_foreign_locations) return "torchsnapshot (C++ engine) " + summary.version;
  if (summary.metadata_guarded) return "torchsnapshot (C++ engine) " + summary.version;
  if (has_foreign_locations && summary.take_ids.empty())
    return "torchsnapshot (the original in Python) " + summary.version;
  return "unknown, version " + summary.version;
}

}  // namespace

SnapshotSummary summarize(const Snapshot& snapshot, const std::stop_token& stop) {
  const auto metadata = snapshot.metadata();
  Storage& storage = *snapshot.storage();
  SnapshotSummary summary;
  summary.version = metadata->version;
  summary.world_size = metadata->world_size;
  summary.metadata_guarded = has_seal(storage, stop);
  try {
    for (const ObjectInfo& object : storage.list_objects(std::string(kMetadataName))) {
      if (object.location != kMetadataName) continue;
      summary.committed = object.modified;
      summary.metadata_bytes = object.size.value_or(0);
    }
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported) throw;  // a storage that can't list
  }

  const LocationSizes sizes = object_sizes(*metadata, storage, stop);
  for (const EntryInfo& entry : list_entries(*metadata, sizes)) {
    if (entry.container) continue;
    const auto [rank, logical] = split_rank(entry.path);
    add(summary.leaves, entry.bytes);
    add(summary.by_rank[rank], entry.bytes);
    add(summary.by_key[decode_component(logical.substr(0, logical.find('/')))], entry.bytes);
    add(summary.by_type[entry.type], entry.bytes);
    if (entry.dtype) add(summary.by_dtype[std::string(dtype_name(*entry.dtype))], entry.bytes);
  }

  std::set<std::string, std::less<>> locations;
  for (const auto& [path, entry] : metadata->manifest) {
    for (const std::string_view location : entry_locations(entry)) locations.emplace(location);
  }
  std::set<std::string, std::less<>> take_ids;
  bool has_foreign_locations = false;
  for (const std::string& location : locations) {
    const std::string_view id = take_id_of(location);
    if (id.empty()) {
      has_foreign_locations = true;
    } else {
      take_ids.emplace(id);
    }
  }
  summary.take_ids.assign(take_ids.begin(), take_ids.end());
  summary.writer = writer_of(summary, has_foreign_locations);

  const std::vector<std::string> all(locations.begin(), locations.end());
  const LoadedChecksums checksums = load_all_checksums(storage, all, stop);
  for (const LoadedChecksums::Problem& problem : checksums.problems)
    summary.problems.emplace_back(problem.error.what());
  summary.objects = all.size();
  for (const std::string& location : all) {
    const auto size = sizes.find(location);
    if (size == sizes.end()) {
      ++summary.objects_missing;
      continue;
    }
    summary.object_bytes += size->second;
    if (!checksums.tables.contains(location)) continue;
    ++summary.objects_with_checksums;
    summary.bytes_with_checksums += size->second;
  }
  return summary;
}

}  // namespace torchsnapshot
