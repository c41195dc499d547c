// What dead takes left behind, and how it is told from what is alive.
//
// Only names of ours are looked at, because only of those it is known what they mean: "data/TAKE_ID/…",
// ".torchsnapshot/TAKE_ID/…" and "….tmp-XXXXXXXXXXXXXXXX" at the top or in these folders. Everything else stays.
//  1. The objects are listed, and then the uploads that were begun and not completed. Then, not before, the metadata is
//     read: a take that commits between the two is seen as committed, and one that commits later is running (3).
//  2. A take that the metadata refers to is committed: its objects stay, all of them. Only temporary files, uploads,
//  and
//     the markers of a process that did not get to remove them can be left over there. Each is judged by itself.
//  3. Any other take is running or dead. In this order:
//     a. A marker (take_marker.h) of a process that lives on this machine: running, however old.
//     b. Markers only of processes that are gone from this machine: dead, however young. None of them can commit.
//     c. Otherwise the newest of its objects and parts of uploads decides: running if it was written less than
//        `older_than` ago, by the storage's clock. A running take keeps writing; a day without a byte is a dead one.
//  4. What is dead is removed: data and uploads first, its markers last, so that an interrupted prune can be repeated.
// Nothing here needs a lock or a rename, so it works on object stores as well.
#include "torchsnapshot/prune.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/path_codec.h"
#include "core/text.h"
#include "snapshot/internal.h"
#include "snapshot/take_marker.h"
#include "snapshot/take_objects.h"
#include "storage/location.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/inspect.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot {
namespace {

using Clock = std::chrono::system_clock;

constexpr std::string_view kTemporaryPrefix = ".tmp-";
constexpr std::size_t kTemporaryDigits = 16;
constexpr std::uint64_t kMaxMarkerBytes = 4096;

bool is_temporary(std::string_view location) {
  const std::string_view name = last_component(location);
  if (name.size() != kTemporaryPrefix.size() + kTemporaryDigits || !name.starts_with(kTemporaryPrefix)) return false;
  const std::string_view digits = name.substr(kTemporaryPrefix.size());
  return digits.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

std::string_view owner_of(std::string_view location) {
  const std::string_view id = take_id_of(location, kDataFolder);
  return id.empty() ? take_id_of(location, kSidecarFolder) : id;
}

struct Referred {
  std::set<std::string, std::less<>> locations;  ///< normalized
  std::set<std::string, std::less<>> take_ids;
};

Referred referred_by(const SnapshotMetadata& metadata) {
  Referred referred;
  for (const auto& [path, entry] : metadata.manifest) {
    for (const std::string_view location : entry_locations(entry)) {
      std::string normal = normalize_location(location);
      const std::string_view id = take_id_of(normal);
      if (!id.empty()) referred.take_ids.emplace(id);
      referred.locations.insert(std::move(normal));
    }
  }
  return referred;
}

/// Metadata of the snapshot; nothing when there is none.
std::optional<SnapshotMetadata> metadata_of(Storage& storage) {
  try {
    return load_metadata(storage, {}, true);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kNotFound) return std::nullopt;
    throw error.with_context("what belongs to the snapshot can't be told, so nothing is removed");
  }
}

std::vector<ObjectInfo> list_ours(Storage& storage) {
  std::vector<ObjectInfo> objects;
  for (const std::string_view prefix : {kTemporaryPrefix, kSidecarFolder, kDataFolder}) {
    for (ObjectInfo& object : storage.list_objects(std::string(prefix))) {
      if (!owner_of(object.location).empty() || is_temporary(object.location)) objects.push_back(std::move(object));
    }
  }
  return objects;
}

std::vector<UnfinishedObject> list_unfinished(Storage& storage, std::vector<std::string>& notices) {
  std::vector<UnfinishedObject> unfinished;
  try {
    for (const std::string_view prefix : {kSidecarFolder, kDataFolder}) {
      for (UnfinishedObject& object : storage.list_unfinished(std::string(prefix))) {
        if (!owner_of(object.location).empty()) unfinished.push_back(std::move(object));
      }
    }
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported) throw;
    notices.push_back(std::string("unfinished uploads are not looked for: ") + error.what());
  }
  return unfinished;
}

std::string age_text(std::chrono::seconds age) {
  const auto count = age.count();
  if (count < 120) return std::to_string(count) + " s";
  if (count < 7200) return std::to_string(count / 60) + " min";
  if (count < 172800) return std::to_string(count / 3600) + " h";
  return std::to_string(count / 86400) + " days";
}

/// Decides by the newest object (step 3c).
void judge_by_age(LeftOver& left_over, const PruneOptions& options, Clock::time_point now, const Storage& storage) {
  if (options.older_than.count() <= 0) {
    left_over.life = TakeLife::kDead;
    left_over.reason = "no process of it is known, and its age does not matter";
    return;
  }
  if (!left_over.newest) {
    throw Error(
        ErrorCode::kUnsupported,
        "prune of " + storage.url() +
            ": this storage does not tell when objects were written, so a dead take can't be told from a running "
            "one; if surely none is running, prune regardless of age (--older-than 0)");
  }
  const auto age = std::chrono::duration_cast<std::chrono::seconds>(now - *left_over.newest);
  const bool dead = age >= options.older_than;
  left_over.life = dead ? TakeLife::kDead : TakeLife::kRunning;
  left_over.reason = "nothing was written to it for " + age_text(std::max(age, std::chrono::seconds(0))) +
                     (dead ? "" : ", less than the limit of " + age_text(options.older_than));
}

void judge(LeftOver& left_over, const PruneOptions& options, Clock::time_point now, Storage& storage) {
  bool all_gone = false;
  std::string gone;
  for (const std::string& location : left_over.locations) {
    if (!is_take_marker(location)) continue;
    std::optional<ProcessIdentity> writer;
    try {
      writer = parse_take_marker(storage.read_all(location, kMaxMarkerBytes, {}));
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kNotFound && error.code() != ErrorCode::kCorrupt) throw;
    }
    const ProcessLife life = writer ? life_of(*writer) : ProcessLife::kUnknown;
    if (life == ProcessLife::kRunning) {
      left_over.life = TakeLife::kRunning;
      left_over.reason = "process " + std::to_string(writer->pid) + " on this machine is writing it";
      return;
    }
    if (life == ProcessLife::kUnknown) return judge_by_age(left_over, options, now, storage);
    all_gone = true;
    gone += (gone.empty() ? "" : ", ") + std::to_string(writer->pid);
  }
  if (!all_gone) return judge_by_age(left_over, options, now, storage);
  left_over.life = TakeLife::kDead;
  left_over.reason = "its process " + gone + " on this machine is gone";
}

/// What the metadata does not account for, by take; what is left over of a committed one each by itself.
std::vector<LeftOver> find_left_overs(const std::vector<ObjectInfo>& objects,
                                      const std::vector<UnfinishedObject>& unfinished, const Referred& referred) {
  std::map<std::pair<std::string, std::string>, LeftOver> found;  // by take, and location where each stands for itself
  const auto left_over_of = [&](const std::string& location, bool is_alone) -> LeftOver& {
    const std::string id(owner_of(location));
    LeftOver& left_over = found[{id, is_alone || id.empty() ? location : ""}];
    left_over.take_id = id;
    return left_over;
  };
  const auto is_committed = [&](const std::string& location) {
    const std::string_view id = owner_of(location);
    return !id.empty() && referred.take_ids.contains(id);
  };
  const auto add = [](LeftOver& left_over, std::uint64_t bytes, const auto& modified) {
    left_over.bytes += bytes;
    left_over.newest = std::max(left_over.newest, modified);  // nothing comes before every time
  };
  for (const ObjectInfo& object : objects) {
    if (referred.locations.contains(object.location)) continue;
    const bool committed = is_committed(object.location);
    if (committed && !is_temporary(object.location) && !is_take_marker(object.location)) continue;
    LeftOver& left_over = left_over_of(object.location, committed);
    left_over.locations.push_back(object.location);
    add(left_over, object.size.value_or(0), object.modified);
  }
  for (const UnfinishedObject& object : unfinished) {
    LeftOver& left_over = left_over_of(object.location, is_committed(object.location));
    left_over.unfinished.push_back(object);
    add(left_over, object.bytes, object.modified);
  }
  std::vector<LeftOver> left_overs;
  for (auto& [key, left_over] : found) left_overs.push_back(std::move(left_over));
  return left_overs;
}

/// A list for the report; empty where the storage can't list.
std::vector<ObjectInfo> list_if_possible(Storage& storage, const std::string& prefix) {
  try {
    return storage.list_objects(prefix);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported) throw;
    return {};
  }
}

/// The metadata of the snapshot to remove. With `force` also one whose seal is broken, and nothing for one that makes
/// no sense at all.
std::optional<SnapshotMetadata> metadata_to_remove(Storage& storage, bool force) {
  for (const bool verify : {true, false}) {
    try {
      return load_metadata(storage, {}, verify);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kNotFound) {
        throw Error(ErrorCode::kNotASnapshot,
                    "there is no snapshot at " + storage.url() + ": it has no " + std::string(kMetadataName));
      }
      if (!force || (error.code() != ErrorCode::kCorrupt && error.code() != ErrorCode::kUnsupported)) {
        throw error.with_context("what belongs to the snapshot can't be told, so nothing is removed");
      }
    }
  }
  return std::nullopt;
}

}  // namespace

PruneReport prune(Storage& storage, const PruneOptions& options) {
  PruneReport report;
  const std::vector<ObjectInfo> objects = list_ours(storage);
  const std::vector<UnfinishedObject> uploads = list_unfinished(storage, report.notices);
  const auto metadata = metadata_of(storage);
  const auto now = Clock::now();
  report.left_overs = find_left_overs(objects, uploads, metadata ? referred_by(*metadata) : Referred{});
  std::vector<std::string> data;
  std::vector<UnfinishedObject> unfinished;
  std::vector<std::string> markers;
  for (LeftOver& left_over : report.left_overs) {
    std::sort(left_over.locations.begin(), left_over.locations.end());
    judge(left_over, options, now, storage);
    if (left_over.life == TakeLife::kRunning) continue;
    report.removed_objects += left_over.locations.size();
    report.removed_unfinished += left_over.unfinished.size();
    unfinished.insert(unfinished.end(), left_over.unfinished.begin(), left_over.unfinished.end());
    report.removed_bytes += left_over.bytes;
    for (const std::string& location : left_over.locations) {
      (is_take_marker(location) ? markers : data).push_back(location);
    }
  }
  if (options.dry_run) return report;
  storage.remove(data);
  storage.remove_unfinished(unfinished);
  storage.remove(markers);
  return report;
}

RemoveReport remove_snapshot(Storage& storage, bool force, bool dry_run) {
  const std::string name(kMetadataName);
  const auto metadata = metadata_to_remove(storage, force);
  RemoveReport report;
  std::vector<std::string> locations;
  if (metadata) {
    const Referred referred = referred_by(*metadata);
    for (const std::string& location : referred.locations) {
      if (is_plain_location(location)) locations.push_back(location);
    }
    for (const auto& [location, size] : object_sizes(*metadata, storage)) report.bytes += size;
    for (const std::string& id : referred.take_ids) {
      for (ObjectInfo& sidecar : list_if_possible(storage, std::string(kSidecarFolder) + id + "/")) {
        report.bytes += sidecar.size.value_or(0);
        locations.push_back(std::move(sidecar.location));
      }
    }
  }
  for (const ObjectInfo& object : list_if_possible(storage, name)) {
    if (object.location == name) report.bytes += object.size.value_or(0);
  }
  report.objects = locations.size() + 1;
  const std::set<std::string_view> all(locations.begin(), locations.end());
  for (const std::string_view prefix : {kSidecarFolder, kDataFolder}) {
    for (const ObjectInfo& object : list_if_possible(storage, std::string(prefix))) {
      if (!owner_of(object.location).empty() && !all.contains(object.location)) ++report.remaining;
    }
  }
  if (dry_run) return report;
  storage.remove(std::span(&name, 1));
  storage.sync();
  storage.remove(locations);
  return report;
}

}  // namespace torchsnapshot
