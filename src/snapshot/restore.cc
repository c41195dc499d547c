#include <algorithm>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/path_codec.h"
#include "manifest/rank_view.h"
#include "pipeline/corruption_log.h"
#include "pipeline/options.h"
#include "snapshot/internal.h"
#include "snapshot/share_session.h"
#include "snapshot/state_reader.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {
namespace {

constexpr std::size_t kNearMisses = 3;

/// "; did you mean 'a', 'b'?" or nothing. A path that is right but for its escapes is the likeliest miss.
std::string suggestion(std::string_view wanted, const std::vector<std::string>& candidates) {
  std::vector<std::string> nearest;
  const std::string decoded = decode_component(wanted);
  for (const std::string& candidate : candidates) {
    if (decode_component(candidate) == decoded) nearest.push_back(candidate);
  }
  if (nearest.empty()) nearest = near_misses(wanted, candidates, kNearMisses);
  std::string text;
  for (const std::string& miss : nearest) text += (text.empty() ? "; did you mean '" : "', '") + miss;
  return text.empty() ? text : text + "'?";
}

[[noreturn]] void fail_missing_key(const Storage& storage, const std::string& key, const KeyGroups& groups) {
  std::vector<std::string> known;
  for (const auto& [group, entries] : groups) known.push_back(decode_component(group));
  std::sort(known.begin(), known.end());
  std::string list;
  for (std::size_t i = 0; i < known.size() && i < 20; ++i) list += (i == 0 ? "'" : ", '") + known[i] + "'";
  if (known.size() > 20) list += ", …";
  throw Error(ErrorCode::kEntryNotFound, "the snapshot at " + storage.url() + " has nothing under the key '" + key +
                                             "' for this rank; its keys are: " + (list.empty() ? "none" : list));
}

/// `path` and what lies below it.
std::vector<const ViewEntry*> entries_below(const RankView& view, std::string_view path) {
  std::vector<const ViewEntry*> found;
  for (const ViewEntry& entry : view.entries()) {
    const std::string_view candidate = entry.path;
    if (candidate.starts_with(path) && (candidate.size() == path.size() || candidate[path.size()] == '/')) {
      found.push_back(&entry);
    }
  }
  return found;
}

/// The subtree at `path`; a tensor of `target` that does not fit is an error.
Value read_tree(Storage& storage, ChecksumStore& checksums, const std::string& path,
                const std::vector<const ViewEntry*>& entries, const Value* target, const ReadOptions& options) {
  StateReader reader(options.allocate, options.decode);
  const std::size_t tree = reader.add(path, entries, target, target != nullptr, nullptr);
  CorruptionLog corruptions(false);
  try {
    reader.read(storage, options.io, checksums, corruptions);
  } catch (const Error& error) {
    throw error.with_context("reading from " + storage.url());
  }
  return reader.take_result(tree);
}

/// Whether this rank would have others read for it. By default it does for what is not on this machine or looks so.
bool wants_to_share(const Storage& storage, const RestoreOptions& options) {
  if (!options.coordinator->can_hand_round() || options.coordinator->world_size() == 1) return false;
  if (options.replicated_read != ReplicatedRead::kAuto) return options.replicated_read == ReplicatedRead::kShare;
  const std::string url = storage.url();
  return !url.starts_with("fs://") && !url.starts_with("memory://");
}

/// The ranks begin to read. Nothing has been changed yet.
void begin_together(ShareSession& session, const Storage& storage, const RestoreOptions& options) {
  const bool is_sharing = session.begin(wants_to_share(storage, options), budget_or_default(options.io));
  if (is_sharing || options.replicated_read != ReplicatedRead::kShare || !options.io.on_notice) return;
  options.io.on_notice(std::string("replicated_read \"share\" is not followed, each rank reads for itself: ") +
                       (options.coordinator->can_hand_round() ? "not all ranks have asked for it"
                                                              : "this coordinator can't hand bytes round"));
}

/// What a rank beyond the saved world has not got, because it was private to the ranks that saved it.
void tell_private(std::int64_t rank, std::int64_t world_size, const RestoreReport& report, const IoOptions& io) {
  constexpr std::size_t kNamed = 5;
  if (report.missing.empty() || !io.on_notice) return;
  std::string paths;
  for (std::size_t i = 0; i < report.missing.size() && i < kNamed; ++i) {
    paths += (i == 0 ? "'" : ", '") + report.missing[i] + "'";
  }
  if (report.missing.size() > kNamed) paths += " and " + std::to_string(report.missing.size() - kNamed) + " more";
  io.on_notice("rank " + std::to_string(rank) + " was not among the " + std::to_string(world_size) +
               " that saved the snapshot; what each of those has for itself alone is not for it: " + paths +
               ". Name what is the same on all ranks as `replicated` in take");
}

}  // namespace

RestoreReport Snapshot::restore(AppState& app, const RestoreOptions& options) const {
  const std::int64_t rank = options.coordinator ? options.coordinator->rank() : 0;
  RestoreReport report;
  StateReader reader(options.allocate, options.decode);
  std::vector<std::pair<std::size_t, std::size_t>> planned;  // index in the app state, in the reader
  const auto state_of_keys = [&](std::int64_t of_rank) {
    std::vector<std::string> paths;
    for (const auto& [key, target] : app) paths.push_back(encode_component(key));
    auto part = cache_->part(*this, of_rank, paths, options.io);
    const auto has = [&part](const std::string& path) { return part->groups.contains(path); };
    // What is missing is told with what there is.
    if (part && std::all_of(paths.begin(), paths.end(), has)) return part;
    return cache_->state(*this, of_rank, options.io.checksums);
  };
  const auto named = [this](const std::function<void()>& part) {
    try {
      part();
    } catch (const Error& error) {
      throw error.with_context("restoring from " + storage_->url());
    }
  };
  std::shared_ptr<const SavedState> saved;  // the reader refers to it
  const auto look = [&] {
    saved = state_of_keys(rank);
    for (std::size_t i = 0; i < app.size(); ++i) {
      const auto& [key, target] = app[i];
      const std::string path = encode_component(key);
      const auto group = saved->groups.find(path);
      if (group == saved->groups.end()) {
        if (options.strict) fail_missing_key(*storage_, key, saved->groups);
        report.missing.push_back(path);
        continue;
      }
      const auto& exact = options.exact_keys;
      const bool is_exact = std::find(exact.begin(), exact.end(), key) != exact.end();
      planned.emplace_back(i, reader.add(path, group->second, &target, is_exact, &report));
    }
    if (rank >= saved->metadata->world_size) tell_private(rank, saved->metadata->world_size, report, options.io);
    named([&] { reader.check(*storage_, options.io, cache_->checksums); });
  };
  const auto read = [&](ShareSession* session) {
    CorruptionLog corruptions(options.keep_going);
    named([&] { reader.read_checked(*storage_, options.io, corruptions, session); });
    report.corrupt = corruptions.take();
  };
  if (options.coordinator) {
    ShareSession session(*options.coordinator);
    std::exception_ptr error;
    try {
      look();
      begin_together(session, *storage_, options);
      read(&session);
    } catch (...) {
      error = std::current_exception();
      session.refuse();
    }
    end_restore(*options.coordinator, error);
  } else {
    look();
    read(nullptr);
  }
  for (const auto& [i, tree] : planned) {
    Value state = reader.take_result(tree);
    if (options.on_state) {
      options.on_state(i, std::move(state));
    } else {
      app[i].second = std::move(state);
    }
  }
  return report;
}

Value Snapshot::read_object(const std::string& path, const Value* target, const ReadOptions& options) const {
  std::int64_t rank = 0;
  std::string_view inner;
  try {
    std::tie(rank, inner) = split_rank(path);
  } catch (const Error&) {
    throw Error(ErrorCode::kEntryNotFound,
                "'" + path + "' does not begin with a rank; paths are 'RANK/key/sub/path', such as '0/" + path + "'");
  }
  if (const auto part = cache_->part(*this, rank, {std::string(inner)}, options.io)) {
    const std::vector<const ViewEntry*> entries = entries_below(part->view, inner);
    if (!entries.empty() && part->view.find(inner) != nullptr) {
      return read_tree(*storage_, cache_->checksums, std::string(inner), entries, target, options);
    }
  }
  // Most often the look-up is enough; the view of a large snapshot takes longer to make than this to read.
  const auto manifest = metadata(options.io.checksums);
  if (const auto leaf = find_own_leaf(*manifest, rank, inner)) {
    return read_tree(*storage_, cache_->checksums, std::string(inner), {&*leaf}, target, options);
  }
  const auto saved = cache_->state(*this, rank, options.io.checksums);
  const std::vector<const ViewEntry*> entries = entries_below(saved->view, inner);
  if (entries.empty() || saved->view.find(inner) == nullptr) {
    std::vector<std::string> candidates;
    for (const ViewEntry& entry : saved->view.entries()) candidates.push_back(std::to_string(rank) + "/" + entry.path);
    throw Error(ErrorCode::kEntryNotFound,
                "the snapshot at " + storage_->url() + " has no entry '" + path + "'" + suggestion(path, candidates));
  }
  return read_tree(*storage_, cache_->checksums, std::string(inner), entries, target, options);
}

Value Snapshot::read_state(const std::string& key, std::int64_t rank, const ReadOptions& options) const {
  const auto saved = cache_->state(*this, rank, options.io.checksums);
  const std::string path = encode_component(key);
  const auto group = saved->groups.find(path);
  if (group == saved->groups.end()) fail_missing_key(*storage_, key, saved->groups);
  return read_tree(*storage_, cache_->checksums, path, group->second, nullptr, options);
}

}  // namespace torchsnapshot
