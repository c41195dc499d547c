// The commit protocol (docs/format.md, "Commit"). A crash between any two steps leaves the old snapshot, or none, or
// the new one.
//  1. Every object of the take is written under a name that no other take uses, so that nothing the committed
//     manifest points to is touched.
//  2. Every object is made durable by its writer, and then the folders by Storage::sync.
//  3. The metadata is published atomically and durably. This is the commit.
//  4. Only now are the objects of the snapshot that was there before removed.
// A failure in 1 to 3 removes what was written (best effort) and leaves the old snapshot.

#include <algorithm>
#include <random>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/path_codec.h"
#include "pipeline/pipeline.h"
#include "plan/write_plan.h"
#include "snapshot/internal.h"
#include "state/flatten.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {
namespace {

/// 128 random bits in hex: unique to this take.
std::string make_take_id() {
  std::random_device random;
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string id;
  for (int word = 0; word < 4; ++word) {
    std::uint32_t bits = random();
    for (int digit = 0; digit < 8; ++digit, bits >>= 4U) id += kDigits[bits & 15U];
  }
  return id;
}

FlatState flatten_app(const AppState& app) {
  FlatState state;
  std::unordered_set<std::string_view> keys;
  for (const auto& [key, value] : app) {
    if (!keys.insert(key).second) throw Error(ErrorCode::kInvalidArgument, "app state has the key '" + key + "' twice");
    flatten(value, encode_component(key), state);
  }
  return state;
}

/// True for names that can only mean what they say; a manifest may hold others, which are read but never removed.
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

/// Locations that the snapshot now at this place refers to. None when there is no readable snapshot: then nothing
/// can be said about what else lies there, and it stays.
std::vector<std::string> committed_locations(Storage& storage, const IoOptions& io) {
  std::vector<std::string> locations;
  try {
    const SnapshotMetadata old = load_metadata(storage, io.stop);
    for (const auto& [path, entry] : old.manifest) {
      for (const std::string_view location : entry_locations(entry)) {
        if (is_plain_location(location)) locations.emplace_back(location);
      }
    }
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kCorrupt && io.on_notice) {
      io.on_notice(std::string("the metadata that this take replaces is not readable, so its data is left in place: ") +
                   error.what());
    } else if (error.code() != ErrorCode::kNotFound && error.code() != ErrorCode::kCorrupt) {
      throw;
    }
  }
  return locations;
}

void remove_quietly(Storage& storage, const std::vector<std::string>& locations, const IoOptions& io) {
  try {
    storage.remove(locations);
  } catch (const Error& error) {
    if (io.on_notice) io.on_notice(std::string("left-over objects could not be removed: ") + error.what());
  }
}

/// False only when the metadata on storage is surely not `text`.
bool may_be_committed(Storage& storage, std::string_view text) {
  try {
    return storage.read_all(std::string(kMetadataName), text.size(), {}) == text;
  } catch (const Error& error) {
    return error.code() != ErrorCode::kNotFound && error.code() != ErrorCode::kCorrupt;
  }
}

[[noreturn]] void rethrow_with_context(const std::string& context) {
  try {
    throw;
  } catch (const Error& error) {
    throw error.with_context(context);
  }
}

}  // namespace

Snapshot Snapshot::take(const std::string& url, const AppState& app, const TakeOptions& options,
                        const StorageOptions& storage_options) {
  return take(open_storage(url, storage_options), app, options);
}

Snapshot Snapshot::take(std::shared_ptr<Storage> storage, const AppState& app, const TakeOptions& options) {
  WritePlanOptions plan_options;
  plan_options.take_id = make_take_id();
  plan_options.replicated = options.replicated;
  plan_options.max_chunk_bytes = options.max_chunk_bytes;
  plan_options.max_shard_bytes = options.max_shard_bytes;
  plan_options.slab_bytes = options.slab_bytes;
  plan_options.batching = options.batching;
  WritePlan plan = plan_write(flatten_app(app), plan_options);

  std::vector<std::string> obsolete = committed_locations(*storage, options.io);
  std::vector<std::string> written;
  written.reserve(plan.objects.size());
  for (const WriteObject& object : plan.objects) written.push_back(object.location);

  auto metadata = std::make_shared<SnapshotMetadata>();
  metadata->version = TORCHSNAPSHOT_VERSION;
  metadata->world_size = 1;
  metadata->manifest = std::move(plan.manifest);
  const std::string text = write_metadata(*metadata);
  bool publishing = false;
  try {
    run_writes(plan, *storage, options.io);
    storage->sync();
    if (options.io.stop.stop_requested()) throw Error(ErrorCode::kCancelled, "the take was cancelled");
    publishing = true;
    storage->publish(std::string(kMetadataName), text);
  } catch (...) {
    // A publish that failed may still have happened: then the data stays, whatever the caller is told.
    if (!publishing || !may_be_committed(*storage, text)) remove_quietly(*storage, written, options.io);
    rethrow_with_context("taking a snapshot to " + storage->url());
  }
  remove_quietly(*storage, obsolete, options.io);

  Snapshot snapshot(std::move(storage));
  snapshot.cache_->metadata = std::move(metadata);
  return snapshot;
}

}  // namespace torchsnapshot
