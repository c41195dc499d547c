// The commit protocol (docs/commit.md). A crash between any two steps leaves the old snapshot, or none, or the new one.
//  1. Every object of the take, and then the checksums of them all, is written under a name that no other take uses, so
//     that nothing the committed manifest points to is touched. Rank 0 adds a marker that says which process this is:
//     `prune` sees by it that the take is running, or dead (take_marker.h).
//  2. Every object is made durable by its writer, and then the folders by Storage::sync.
//  3. With several ranks, all have come so far (coord/commit_vote.cc). The rest is rank 0's; the others wait for it.
//  4. Takes of this process to the same place that were begun before have ended.
//  5. The metadata is published atomically and durably. This is the commit.
//  6. Only now are the marker and the objects of the snapshot that was there before removed.
// A failure in 1 to 5, on any rank, removes what was written (best effort) and leaves the old snapshot.

#include "snapshot/take_job.h"

#include <algorithm>
#include <cstddef>
#include <exception>
#include <span>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "integrity/checksum_sidecar.h"
#include "manifest/manifest_index.h"
#include "manifest/metadata_seal.h"
#include "pipeline/checksum_store.h"
#include "pipeline/options.h"
#include "snapshot/internal.h"
#include "snapshot/metadata_index.h"
#include "snapshot/take_marker.h"
#include "snapshot/take_objects.h"
#include "snapshot/world_take.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

/// Everything that belongs to the snapshot now at this place. Nothing when there is no readable snapshot: then nothing
/// can be said about what else lies there, and it stays.
std::vector<std::string> committed_locations(Storage& storage, const IoOptions& io) {
  std::vector<std::string> locations;
  std::unordered_set<std::string> sidecars;
  std::optional<MetadataSeal> seal;
  try {
    const SnapshotMetadata old = load_metadata(storage, io.stop, true, &seal);
    for (const auto& [path, entry] : old.manifest) {
      for (const std::string_view location : entry_locations(entry)) {
        if (!is_plain_location(location)) continue;
        locations.emplace_back(location);
        if (auto sidecar = checksum_location_of(location)) sidecars.insert(*std::move(sidecar));
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
  locations.insert(locations.end(), sidecars.begin(), sidecars.end());
  if (seal && !seal->index_take.empty()) locations.push_back(index_location(seal->index_take));
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

}  // namespace

template <typename Step>
auto TakeJob::step(const Step& step) {
  std::exception_ptr cause;
  try {
    return step();
  } catch (...) {
    cause = cause_of(std::current_exception());
    fail(cause);
  }
  try {
    std::rethrow_exception(cause);
  } catch (const Error& error) {
    throw error.with_context("taking a snapshot to " + storage_->url());
  }
}

std::exception_ptr TakeJob::cause_of(const std::exception_ptr& error) noexcept {
  const bool was_stopped = watch_ && watch_->has_seen_failure() && !callers_stop_.stop_requested();
  watch_.reset();
  if (!was_stopped) return error;
  try {
    std::rethrow_exception(error);
  } catch (const Error& own) {
    if (own.code() != ErrorCode::kCancelled) return error;  // both have failed
  } catch (...) {
    return error;
  }
  try {
    vote_->throw_failure();
  } catch (...) {
    return std::current_exception();
  }
  return error;
}

TakeJob::TakeJob(std::shared_ptr<Storage> storage, const AppState& app, const TakeOptions& options, Staging staging)
    : storage_(std::move(storage)),
      callers_stop_(options.io.stop),
      forward_(callers_stop_, [this] { stop_.request_stop(); }),
      io_(options.io),
      on_copied_(options.on_copied),
      metadata_(std::make_shared<SnapshotMetadata>()) {
  if (options.coordinator && options.coordinator->world_size() > 1) {
    ranks_ = options.coordinator;
    rank_ = ranks_->rank();
  }
  io_.stop = stop_.get_token();
  index_entries_ = options.index_entries;
  if (publishes()) turn_.emplace(storage_->url());
  step([&] {
    plan(app, options);
    for (const WriteObject& object : plan_.objects) written_.push_back(object.location);
    pipeline_ = std::make_unique<WritePipeline>(plan_, *storage_, io_, staging,
                                                WriteGuard::Limits{.user_faults = options.lazy_user_faults});
    if (vote_) watch_ = std::make_unique<FailureWatch>(*vote_, [this] { stop_.request_stop(); });
  });
}

void TakeJob::plan(const AppState& app, const TakeOptions& options) {
  metadata_->version = TORCHSNAPSHOT_VERSION;
  if (ranks_) {
    WorldTake take = plan_world_take(*ranks_, app, options);
    take_id_ = std::move(take.take_id);
    vote_ = std::move(take.vote);
    vote_->set_poll(io_.poll);
    plan_ = std::move(take.plan);
    metadata_->world_size = ranks_->world_size();
    parts_ = std::move(take.parts);
    replicated_ = std::move(take.replicated);
  } else {
    take_id_ = make_take_id();
    plan_ = plan_write(flatten_app(app), plan_options(options, take_id_));
    metadata_->world_size = 1;
    metadata_->manifest = std::move(plan_.manifest);
  }
}

void TakeJob::seal_metadata() {
  const bool has_index = metadata_->manifest.size() >= index_entries_;
  text_ = write_sealed_metadata(*metadata_, has_index ? take_id_ : std::string());
  if (text_.size() > kMaxMetadataBytes) {
    throw Error(ErrorCode::kUnsupported, "the metadata of " + std::to_string(metadata_->manifest.size()) +
                                             " entries takes more than " + std::to_string(kMaxMetadataBytes >> 30) +
                                             " GiB, which can't be read again");
  }
}

/// While data is written.
void TakeJob::complete_metadata() {
  if (!publishes()) return;
  if (parts_) metadata_->manifest = parts_->merge(take_id_, replicated_);
  parts_.reset();
  seal_metadata();
  write_metadata_index();
}

TakeJob::~TakeJob() {
  if (!is_over_) fail(std::make_exception_ptr(Error(ErrorCode::kCancelled, "the take was given up")));
}

/// Tells the other ranks, and removes what was written.
void TakeJob::fail(const std::exception_ptr& error) noexcept {
  watch_.reset();
  if (vote_) {
    vote_->fail(error, is_over_);
    if (vote_->may_be_committed()) is_over_ = true;
  }
  clean_up();
}

void TakeJob::clean_up() noexcept {
  if (std::exchange(is_over_, true)) return;
  pipeline_.reset();  // no write is under way any more
  try {
    if (ranks_ && publishes() && !take_id_.empty()) {
      // What ranks that are dead have left, too. Those that live have removed their own by now, or will when they learn
      // of the end.
      remove_left_by_others();
    }
    remove_quietly(*storage_, written_, io_);
  } catch (const std::exception&) {  // no memory, or an observer that throws: `prune` finds what is left
    return;
  }
}

void TakeJob::remove_left_by_others() {
  const auto attempt = [this](const char* what, const auto& step) {
    try {
      for (const std::string_view folder : {kDataFolder, kSidecarFolder}) step(std::string(folder) + take_id_ + "/");
    } catch (const Error& error) {  // a storage that can't list, as plugins: at least what this rank has written goes
      if (io_.on_notice)
        io_.on_notice(std::string(what) + " that dead ranks have left can't be found: " + error.what());
    }
  };
  attempt("unfinished uploads",
          [this](const std::string& prefix) { storage_->remove_unfinished(storage_->list_unfinished(prefix)); });
  attempt("objects", [this](const std::string& prefix) {
    const auto found = storage_->list(prefix);
    written_.insert(written_.end(), found.begin(), found.end());
  });
}

void TakeJob::stage() {
  step([this] { pipeline_->stage(); });
}

std::shared_ptr<const SnapshotMetadata> TakeJob::finish() {
  const std::vector<std::string> obsolete = step([this] {
    pipeline_->wait_copied();
    if (on_copied_) on_copied_();
    if (publishes()) write_beside_data(take_marker_location(take_id_, rank_), make_take_marker(this_process()));
    pipeline_->start();
    complete_metadata();
    write_checksums(pipeline_->finish());
    pass_on_notices(*storage_, io_);
    pipeline_.reset();
    plan_ = {};
    storage_->sync();
    watch_.reset();
    if (vote_) vote_->arrive();
    if (publishes()) return commit();
    vote_->wait_for_verdict(io_.stop);
    is_over_ = true;
    return std::vector<std::string>();
  });
  if (!publishes()) return nullptr;
  remove_quietly(*storage_, obsolete, io_);
  return metadata_;
}

/// Steps 3 to 5, on rank 0. Returns what the commit has made obsolete.
std::vector<std::string> TakeJob::commit() {
  if (vote_) vote_->wait_for_all(io_.stop);
  turn_->wait(io_.stop);
  std::vector<std::string> old = committed_locations(*storage_, io_);
  if (io_.stop.stop_requested()) throw Error(ErrorCode::kCancelled, "the take was cancelled");
  if (vote_) vote_->begin_commit();
  publish();
  old.push_back(take_marker_location(take_id_, rank_));
  if (vote_) {
    try {
      vote_->announce_commit();
    } catch (const Error& error) {
      if (io_.on_notice) {
        io_.on_notice(std::string("the snapshot is committed, but the other ranks can't be told: ") + error.what());
      }
    }
  }
  return old;
}

void TakeJob::write_checksums(const ChecksumTables& tables) {
  if (tables.empty()) return;
  write_object(checksum_location(take_id_, rank_), serialize_checksums(tables));
}

/// Before the metadata, which names it.
void TakeJob::write_metadata_index() {
  const auto seal = seal_of(std::string_view(text_).substr(0, kSealHeadBytes));
  if (!seal || seal->index_take.empty()) return;
  write_beside_data(index_location(take_id_), write_index(*metadata_, take_id_, {text_.size(), seal->crc}));
}

void TakeJob::write_object(const std::string& location, std::string_view content) {
  written_.push_back(location);
  create(location, content);
}

/// As write_object, by a thread of the data's, while that is being written.
void TakeJob::write_beside_data(const std::string& location, std::string content) {
  written_.push_back(location);
  pipeline_->run([this, location, content = std::move(content)] { create(location, content); });
}

void TakeJob::create(const std::string& location, std::string_view content) const {
  const auto writer = storage_->create(location, content.size(), io_.stop);
  writer->write(0, std::as_bytes(std::span(content)));
  writer->finish();
}

void TakeJob::publish() {
  try {
    storage_->publish(std::string(kMetadataName), text_);
  } catch (...) {
    // It may have happened all the same: then the data stays, whatever the caller is told.
    is_over_ = may_be_committed(*storage_, text_);
    throw;
  }
  is_over_ = true;
}

}  // namespace torchsnapshot
