// Is all of a snapshot intact?
//  1. The metadata: is it there, well-formed, and what was written (its own checksum)?
//  2. Its structure: does every tree go together, do the pieces of every tensor cover it? By the code that a restore
//  uses.
//  3. The objects: is each there, with the size that it had and that the entries need?
//  4. The checksum files: whole, and of the objects that are there?
//  5. The bytes: every object is read to its end, each block compared with its checksum.
// What goes wrong with one thing is a finding, and the rest is checked all the same.
#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/path_codec.h"
#include "core/text.h"
#include "exec/buffer_pool.h"
#include "exec/memory_budget.h"
#include "exec/task_group.h"
#include "integrity/block_checksums.h"
#include "manifest/rank_view.h"
#include "pipeline/options.h"
#include "pipeline/progress.h"
#include "snapshot/internal.h"
#include "snapshot/metadata_index.h"
#include "snapshot/stored_tensor.h"
#include "snapshot/take_objects.h"
#include "state/flatten.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/inspect.h"

namespace torchsnapshot {
namespace {

constexpr std::uint64_t kBlockBytes = 16ULL << 20;  ///< read by a task at once

std::string hex(std::uint32_t value) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", value);
  return text;
}

std::string range_text(ByteRange range) {
  return "[" + std::to_string(range.begin) + ", " + std::to_string(range.end) + ")";
}

/// "entries 'a', 'b' and 7 more"
std::string entries_text(const std::vector<std::string>& entries) {
  constexpr std::size_t kShown = 3;
  if (entries.empty()) return "no entry";
  std::string text = entries.size() == 1 ? "entry " : "entries ";
  for (std::size_t i = 0; i < std::min(entries.size(), kShown); ++i)
    text += (i == 0 ? "" : ", ") + quote_text(entries[i]);
  if (entries.size() > kShown) text += " and " + std::to_string(entries.size() - kShown) + " more";
  return text;
}

/// What refers to bytes of an object.
struct Use {
  ByteRange range;  ///< to UINT64_MAX: the whole object
  const std::string* path = nullptr;
};

/// An object, all that is known of it, and the state of its check.
struct ObjectCheck {
  std::string location;
  std::vector<Use> uses;
  std::optional<std::uint64_t> size;
  const ChecksumTable* table = nullptr;
  std::unique_ptr<ChecksumVerifier> verifier;

  std::mutex mutex;
  std::shared_ptr<ObjectReader> reader;  // guarded by mutex
  bool failed = false;                   // guarded by mutex: it can't be opened, which was told

  [[nodiscard]] std::vector<std::string> entries_in(ByteRange range) const {
    std::vector<std::string> entries;
    for (const Use& use : uses) {
      if (use.range.begin < range.end && range.begin < use.range.end) entries.push_back(*use.path);
    }
    std::sort(entries.begin(), entries.end());
    entries.erase(std::unique(entries.begin(), entries.end()), entries.end());
    return entries;
  }
  [[nodiscard]] std::vector<std::string> all_entries() const { return entries_in({0, UINT64_MAX}); }
};

class Verification {
 public:
  Verification(Storage& storage, const VerifyOptions& options) : storage_(storage), options_(options) {}

  VerifyReport run() {
    if (!read_metadata()) return finish();
    check_structure();
    collect_objects();
    check_tensors();
    load_sidecars();
    check_sizes();
    check_index();
    if (!options_.quick) read_objects();
    return finish();
  }

 private:
  void add(Finding finding) {
    const std::lock_guard lock(mutex_);
    report_.findings.push_back(std::move(finding));
  }

  void add(FindingKind kind, std::vector<std::string> entries, std::string message) {
    Finding finding;
    finding.kind = kind;
    finding.entries = std::move(entries);
    finding.message = std::move(message);
    add(std::move(finding));
  }

  bool read_metadata() {
    try {
      metadata_ = load_metadata(storage_, options_.io.stop, true, &seal_);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kNotFound) {
        throw Error(ErrorCode::kNotASnapshot, "there is no snapshot at " + storage_.url() + ": it has no " +
                                                  std::string(kMetadataName) + " (" + error.what() + ")");
      }
      if (error.code() != ErrorCode::kCorrupt) throw;
      Finding finding;
      finding.object = kMetadataName;
      finding.message = error.what();
      add(std::move(finding));
      return false;
    }
    report_.entries = metadata_.manifest.size();
    report_.metadata_guarded = seal_.has_value();
    return true;
  }

  /// The metadata's index; that it can be had is all a quick look asks.
  void check_index() {
    if (!seal_ || seal_->index_take.empty()) return;
    Finding finding;
    finding.kind = FindingKind::kChecksums;
    finding.object = index_location(seal_->index_take);
    try {
      const auto index =
          open_index(storage_, options_.io.stop, [&](const std::string& notice) { finding.message = notice; });
      if (index && !options_.quick) index->check(metadata_.manifest);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kCancelled) throw;
      finding.message = finding.object + ": " + error.what();
    }
    if (!finding.message.empty()) add(std::move(finding));
  }

  /// Trees, as a restore of each rank would put them together.
  void check_structure() {
    std::set<std::int64_t> ranks;
    for (const auto& [path, entry] : metadata_.manifest) ranks.insert(split_rank(path).first);
    for (const std::int64_t rank : ranks) {
      check_stop();
      const RankView view(metadata_, rank);
      std::map<std::string_view, std::pair<std::vector<FlatContainer>, std::vector<std::string>>> trees;
      for (const ViewEntry& item : view.entries()) {
        const std::string_view path = item.path;
        auto& [containers, leaves] = trees[path.substr(0, path.find('/'))];
        if (const auto* dict = std::get_if<DictEntry>(item.entry)) {
          containers.push_back({item.path, false, dict->ordered, dict->keys});
        } else if (std::holds_alternative<ListEntry>(*item.entry)) {
          containers.push_back({item.path, true, false, {}});
        } else {
          leaves.push_back(item.path);
        }
      }
      for (auto& [key, tree] : trees) {
        try {
          const Inflater inflater(std::string(key), std::move(tree.first), tree.second);
        } catch (const Error& error) {
          add(FindingKind::kStructure, {std::to_string(rank) + "/" + std::string(key)},
              "rank " + std::to_string(rank) + ": " + error.what());
        }
      }
    }
  }

  void collect_objects() {
    for (const auto& [path, entry] : metadata_.manifest) {
      const auto use = [this, &path = path](const std::string& location, const std::optional<ByteRange>& range) {
        const auto [found, is_new] = index_.try_emplace(location, objects_.size());
        if (is_new) {
          objects_.push_back(std::make_unique<ObjectCheck>());
          objects_.back()->location = location;
        }
        objects_[found->second]->uses.push_back({range.value_or(ByteRange{0, UINT64_MAX}), &path});
      };
      for (const ShardEntry& piece : stored_pieces(entry)) use(piece.tensor.location, piece.tensor.byte_range);
      if (const auto* object = std::get_if<ObjectEntry>(&entry)) use(object->location, std::nullopt);
    }
    report_.objects = objects_.size();
  }

  /// The pieces of each tensor, and what they need of the objects.
  void check_tensors() {
    const TensorIndex index(metadata_);
    ReadPlanner planner;
    std::set<std::string_view> seen;  // sharded tensors, which every rank lists
    for (const auto& [path, entry] : metadata_.manifest) {
      try {
        if (std::holds_alternative<ShardedTensorEntry>(entry) && !seen.insert(split_rank(path).second).second) continue;
        const auto tensor = index.find(path, entry);
        if (!tensor) continue;
        if (tensor->is_encoded()) {
          for (const ShardEntry& piece : tensor->pieces) {
            planner.require(BlobRead{path, piece.tensor.location, piece.tensor.byte_range});
          }
        } else {
          planner.require(path, tensor->pieces, Box::whole(tensor->shape));
        }
      } catch (const Error& error) {
        add(FindingKind::kStructure, {path}, error.what());
      }
    }
    for (ObjectNeed& need : planner.needs()) {
      std::string location = need.location;
      needs_.emplace(std::move(location), std::move(need));
    }
  }

  void load_sidecars() {
    std::vector<std::string> locations;
    locations.reserve(objects_.size());
    for (const auto& object : objects_) locations.push_back(object->location);
    checksums_ = load_all_checksums(storage_, locations, options_.io.stop);
    for (const LoadedChecksums::Problem& problem : checksums_.problems) {
      Finding finding;
      finding.kind = FindingKind::kChecksums;
      finding.object = problem.sidecar;
      finding.message = problem.error.what();
      add(std::move(finding));
    }
    for (const auto& object : objects_) {
      const auto found = checksums_.tables.find(object->location);
      if (found != checksums_.tables.end()) object->table = &found->second;
      if (object->table == nullptr) report_.unchecked.push_back(object->location);
    }
    std::sort(report_.unchecked.begin(), report_.unchecked.end());
  }

  void check_sizes() {
    const LocationSizes sizes = object_sizes(metadata_, storage_, options_.io.stop);
    for (const auto& object : objects_) {
      const auto found = sizes.find(object->location);
      if (found != sizes.end()) {
        object->size = found->second;
        report_.object_bytes += found->second;
        check_size(*object);
      } else {
        check_stop();
        check_presence(*object);
      }
    }
  }

  void check_presence(ObjectCheck& object) {
    try {
      object.size = storage_.sizes(std::span(&object.location, 1), options_.io.stop).front();
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kCancelled) throw;
      fail_object(object, error);
      return;
    }
    if (object.size) {
      report_.object_bytes += *object.size;
      check_size(object);
    }
  }

  void check_size(const ObjectCheck& object) {
    const std::uint64_t size = *object.size;
    std::string expected;
    if (object.table != nullptr) {
      if (object.table->object_bytes != size) expected = std::to_string(object.table->object_bytes);
    } else if (const auto need = needs_.find(object.location); need != needs_.end()) {
      const ObjectNeed& needed = need->second;
      if (needed.size && *needed.size != size) expected = std::to_string(*needed.size);
      if (!needed.size && needed.range.end > size) expected = "at least " + std::to_string(needed.range.end);
    } else if (size == 0) {
      expected = "some";  // a serialized object is never empty
    }
    if (expected.empty()) return;
    Finding finding;
    finding.kind = FindingKind::kWrongSize;
    const bool shorter = object.table == nullptr || size < object.table->object_bytes;
    finding.entries = shorter ? object.entries_in({size, UINT64_MAX}) : std::vector<std::string>{};
    finding.object = object.location;
    finding.expected = expected + " bytes";
    finding.found = std::to_string(size) + " bytes";
    finding.message = "object " + quote_text(object.location) + " has " + finding.found + ", expected " +
                      finding.expected + " (" + entries_text(finding.entries) + " harmed)";
    if (const auto need = needs_.find(object.location);
        need != needs_.end() && need->second.dtype == DType::kBFloat16 && need->second.range.end == size + 2) {
      finding.message += kOddBFloat16;
    }
    add(std::move(finding));
  }

  void fail_object(ObjectCheck& object, const Error& error) {
    {
      const std::lock_guard lock(object.mutex);
      if (std::exchange(object.failed, true)) return;
    }
    Finding finding;
    finding.kind = error.code() == ErrorCode::kNotFound ? FindingKind::kMissingObject : FindingKind::kUnreadable;
    finding.entries = object.all_entries();
    finding.object = object.location;
    finding.message = entries_text(finding.entries) + ": " + error.what();
    add(std::move(finding));
  }

  // --- the bytes ---

  void read_objects() {
    std::uint64_t total = 0;
    for (const auto& object : objects_) total += object->failed ? 0 : object->size.value_or(0);
    ProgressMeter meter(total, options_.io.on_progress);
    MemoryBudget budget(budget_or_default(options_.io));
    BufferPool pool(kBlockBytes, options_.io.io_concurrency);
    ThreadPool threads(std::max<std::size_t>(1, options_.io.io_concurrency));
    TaskGroup group(threads, options_.io.stop);
    for (const auto& object : objects_) {
      if (object->failed) continue;
      if (!object->size) continue;  // a storage that can't tell sizes: nothing can be compared
      const std::uint64_t size = *object->size;
      if (object->table != nullptr) object->verifier = std::make_unique<ChecksumVerifier>(*object->table);
      // The last task closes the object.
      const auto left = std::make_shared<std::atomic<std::uint64_t>>((size + kBlockBytes - 1) / kBlockBytes);
      for (std::uint64_t begin = 0; begin < size; begin += kBlockBytes) {
        const ByteRange range{begin, std::min(size, begin + kBlockBytes)};
        group.run([this, &object = *object, range, left, &meter, &budget, &pool, stop = group.stop_token()] {
          const auto lease = budget.acquire(kBlockBytes, stop);
          const auto buffer = pool.acquire();
          read_block(object, range, buffer.span().first(range.size()), stop);
          meter.add(range.size());
          if (left->fetch_sub(1) == 1) {
            const std::lock_guard lock(object.mutex);
            object.reader.reset();
          }
        });
      }
    }
    group.wait(options_.io.poll);
    meter.finish();
    for (const auto& object : objects_) {
      if (!object->verifier) continue;
      for (std::uint64_t i = 0; i < object->table->checksums.size(); ++i) {
        const ByteRange block = object->table->block_range(i);
        if (object->verifier->is_verified(block)) report_.bytes_verified += block.size();
      }
    }
  }

  std::shared_ptr<ObjectReader> reader_of(ObjectCheck& object, const std::stop_token& stop) {
    const std::lock_guard lock(object.mutex);
    if (!object.reader && !object.failed) object.reader = storage_.open(object.location, stop);
    return object.reader;
  }

  void read_block(ObjectCheck& object, ByteRange range, std::span<std::byte> memory, const std::stop_token& stop) {
    std::shared_ptr<ObjectReader> reader;
    try {
      reader = reader_of(object, stop);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kCancelled) throw;
      fail_object(object, error);
    }
    if (!reader) return;
    try {
      reader->read(range.begin, memory);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kCancelled) throw;
      Finding finding;
      finding.kind = FindingKind::kUnreadable;
      finding.entries = object.entries_in(range);
      finding.object = object.location;
      finding.range = range;
      finding.message = "bytes " + range_text(range) + " of object " + quote_text(object.location) +
                        " can't be read (" + entries_text(finding.entries) + " harmed): " + error.what();
      add(std::move(finding));
      return;
    }
    bytes_read_ += range.size();
    if (!object.verifier || range.begin >= object.table->object_bytes) return;
    const std::uint64_t known = std::min(range.end, object.table->object_bytes) - range.begin;
    for (const BlockMismatch& mismatch : object.verifier->add(range.begin, memory.first(known))) {
      Finding finding;
      finding.kind = FindingKind::kWrongBytes;
      finding.entries = object.entries_in(mismatch.range);
      finding.object = object.location;
      finding.range = mismatch.range;
      finding.expected = hex(mismatch.expected);
      finding.found = hex(mismatch.found);
      finding.message = "object " + quote_text(object.location) + ": " + to_string(mismatch) + " (" +
                        entries_text(finding.entries) + " harmed)";
      add(std::move(finding));
    }
  }

  void check_stop() const {
    if (options_.io.stop.stop_requested()) throw Error(ErrorCode::kCancelled, "verify was cancelled");
    if (options_.io.poll) options_.io.poll();
  }

  VerifyReport finish() {
    report_.bytes_read = bytes_read_;
    std::stable_sort(report_.findings.begin(), report_.findings.end(), [](const Finding& a, const Finding& b) {
      const auto key = [](const Finding& f) {
        return std::make_tuple(f.object, f.range ? f.range->begin : 0, f.kind, f.message);
      };
      return key(a) < key(b);
    });
    return std::move(report_);
  }

  Storage& storage_;
  const VerifyOptions& options_;
  SnapshotMetadata metadata_;
  std::optional<MetadataSeal> seal_;
  std::vector<std::unique_ptr<ObjectCheck>> objects_;
  std::unordered_map<std::string, std::size_t> index_;  // into objects_
  std::map<std::string, ObjectNeed> needs_;
  LoadedChecksums checksums_;
  std::atomic<std::uint64_t> bytes_read_{0};
  std::mutex mutex_;  // guards report_.findings while threads run
  VerifyReport report_;
};

}  // namespace

std::string_view to_string(FindingKind kind) noexcept {
  switch (kind) {
    case FindingKind::kMetadata:
      return "METADATA";
    case FindingKind::kStructure:
      return "STRUCTURE";
    case FindingKind::kMissingObject:
      return "MISSING_OBJECT";
    case FindingKind::kWrongSize:
      return "WRONG_SIZE";
    case FindingKind::kWrongBytes:
      return "WRONG_BYTES";
    case FindingKind::kUnreadable:
      return "UNREADABLE";
    case FindingKind::kChecksums:
      break;
  }
  return "CHECKSUMS";
}

VerifyReport verify(Storage& storage, const VerifyOptions& options) {
  return Verification(storage, options).run();
}

}  // namespace torchsnapshot
