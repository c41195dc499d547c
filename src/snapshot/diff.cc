// How do two snapshots differ? Entries are matched by path; sharded tensors by their path without the rank, as one
// tensor each. Values are compared some megabytes at a time: many small tensors share a batch, a large one takes
// several.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/text.h"
#include "manifest/primitive.h"
#include "manifest/rank_view.h"
#include "pipeline/progress.h"
#include "snapshot/stored_tensor.h"
#include "tensor/elements.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/inspect.h"

namespace torchsnapshot {
namespace {

constexpr std::uint64_t kBatchBytes = 32ULL << 20;  ///< of each side
constexpr std::size_t kChunkElements = 4096;
constexpr std::uint64_t kAlignment = 16;

bool is_close(double a, double b, const DiffOptions::Tolerance& tolerance) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  if (std::isinf(a) || std::isinf(b)) return a == b;
  return std::abs(a - b) <= tolerance.atol + tolerance.rtol * std::abs(b);
}

bool is_nan(std::complex<double> value) {
  return std::isnan(value.real()) || std::isnan(value.imag());
}

bool is_close(std::complex<double> a, std::complex<double> b, const DiffOptions::Tolerance& tolerance) {
  if (is_nan(a) || is_nan(b)) return is_nan(a) && is_nan(b);
  const bool finite =
      std::isfinite(a.real()) && std::isfinite(a.imag()) && std::isfinite(b.real()) && std::isfinite(b.imag());
  return finite ? std::abs(a - b) <= tolerance.atol + tolerance.rtol * std::abs(b) : a == b;
}

void note_distance(Difference& difference, double distance, double magnitude) {
  if (!std::isfinite(distance)) return;
  difference.max_absolute = std::max(difference.max_absolute, distance);
  if (magnitude > 0 && std::isfinite(magnitude)) {
    difference.max_relative = std::max(difference.max_relative, distance / magnitude);
  }
}

/// Compares dense elements whose bytes differ somewhere; the first has the index `first` in its tensor.
class ElementComparison {
 public:
  ElementComparison(DType dtype, const std::optional<DiffOptions::Tolerance>& tolerance)
      : dtype_(dtype), kind_(element_kind(dtype)), item_(item_size(dtype)), tolerance_(tolerance) {}

  void compare(std::span<const std::byte> a, std::span<const std::byte> b, std::uint64_t first,
               Difference& difference) {
    const std::size_t chunk = kChunkElements * item_;
    for (std::size_t at = 0; at < a.size(); at += chunk) {
      const auto part_a = a.subspan(at, std::min(chunk, a.size() - at));
      const auto part_b = b.subspan(at, part_a.size());
      if (std::memcmp(part_a.data(), part_b.data(), part_a.size()) == 0) continue;
      compare_chunk(part_a, part_b, first + at / item_, difference);
    }
  }

 private:
  void compare_chunk(std::span<const std::byte> a, std::span<const std::byte> b, std::uint64_t first,
                     Difference& difference) {
    decode(a, values_a_);
    decode(b, values_b_);
    for (std::size_t i = 0; i * item_ < a.size(); ++i) {
      if (std::memcmp(a.data() + i * item_, b.data() + i * item_, item_) == 0) continue;
      if (kind_ != ElementKind::kBits) {
        const std::complex<double> x = values_a_[i];
        const std::complex<double> y = values_b_[i];
        if (kind_ == ElementKind::kFloat && tolerance_ && is_close(x.real(), y.real(), *tolerance_)) continue;
        if (kind_ == ElementKind::kComplex && tolerance_ && is_close(x, y, *tolerance_)) continue;
        note_distance(difference, std::abs(x - y), std::abs(y));
      }
      ++difference.differing;
      if (!difference.first_differing) difference.first_differing = first + i;
    }
  }

  void decode(std::span<const std::byte> bytes, std::vector<std::complex<double>>& values) const {
    values.clear();
    for_each_element(dtype_, bytes, [&values](auto value) {
      if constexpr (std::is_same_v<decltype(value), std::complex<double>>) {
        values.push_back(value);
      } else {
        values.emplace_back(static_cast<double>(value));
      }
    });
  }

  DType dtype_;
  ElementKind kind_;
  std::size_t item_;
  const std::optional<DiffOptions::Tolerance>& tolerance_;
  std::vector<std::complex<double>> values_a_;
  std::vector<std::complex<double>> values_b_;
};

std::string keys_text(const DictEntry& dict) {
  constexpr std::size_t kShown = 10;
  std::string text = std::to_string(dict.keys.size()) + " keys:";
  for (std::size_t i = 0; i < std::min(dict.keys.size(), kShown); ++i) {
    text += (i == 0 ? " " : ", ") + (dict.keys[i].is_int ? dict.keys[i].text : quote_text(dict.keys[i].text));
  }
  return dict.keys.size() > kShown ? text + ", …" : text;
}

std::string entry_text(const Entry& entry, const std::optional<StoredTensor>& tensor) {
  if (tensor) return tensor_text(tensor->dtype, tensor->shape);
  if (const auto* primitive = std::get_if<PrimitiveEntry>(&entry)) {
    return std::string(entry_type_name(entry)) + " " + primitive_text(*primitive);
  }
  if (const auto* object = std::get_if<ObjectEntry>(&entry)) return "object " + object->obj_type;
  return std::string(entry_type_name(entry));
}

/// Where the bytes of a value are that is compared as a whole.
struct Blob {
  std::string path;
  std::string location;
  std::optional<ByteRange> range;
};

class Comparison {
 public:
  Comparison(const Snapshot& a, const Snapshot& b, const DiffOptions& options)
      : options_(options),
        filter_(options.patterns),
        metadata_a_(a.metadata()),
        metadata_b_(b.metadata()),
        storage_a_(*a.storage()),
        storage_b_(*b.storage()),
        index_a_(*metadata_a_),
        index_b_(*metadata_b_),
        meter_(total_bytes(), options.io.on_progress),
        reads_a_(storage_a_, options.io, meter_),
        reads_b_(storage_b_, options.io, meter_) {}

  DiffReport run() {
    for (const Manifest::Item& item : metadata_a_->manifest) {
      check_stop();
      compare_item(item);
    }
    for (const Manifest::Item& item : metadata_b_->manifest) {
      if (matched_b_.contains(&item.second) || !filter_.matches(item.first)) continue;
      const std::string_view logical = split_rank(item.first).second;
      if (std::holds_alternative<ShardedTensorEntry>(item.second) && !sharded_.insert(logical).second) continue;
      tell(DifferenceKind::kOnlyInB, item.first, "", entry_text(item.second, index_b_.find(item.first, item.second)));
    }
    flush();
    meter_.finish();
    std::stable_sort(found_.begin(), found_.end(), [](const auto& x, const auto& y) { return x.first < y.first; });
    for (auto& [order, difference] : found_) report_.differences.push_back(std::move(difference));
    return std::move(report_);
  }

 private:
  /// Two tensors of the same dtype and shape, on the way.
  struct Pair {
    StoredTensor a;
    StoredTensor b;
    Difference difference;
    std::size_t order = 0;
    std::uint64_t compared = 0;  ///< elements
  };
  /// A box of both, to be read into the buffers at `offset`.
  struct Job {
    Pair* pair = nullptr;
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
  };

  [[nodiscard]] std::uint64_t total_bytes() const {
    // Both sides; what one of them lacks is not read, but nobody minds a bar that jumps at the end.
    std::uint64_t bytes = 0;
    for (const auto& metadata : {metadata_a_, metadata_b_}) {
      for (const auto& [path, entry] : metadata->manifest) {
        if (!filter_.matches(path)) continue;
        for (const ShardEntry& piece : stored_pieces(entry))
          bytes += dense_bytes(piece.tensor.dtype, piece.tensor.shape);
      }
    }
    return bytes;
  }

  void check_stop() const {
    if (options_.io.stop.stop_requested()) throw Error(ErrorCode::kCancelled, "diff was cancelled");
    if (options_.io.poll) options_.io.poll();
  }

  void tell(DifferenceKind kind, const std::string& path, std::string a, std::string b) {
    Difference difference;
    difference.path = path;
    difference.kind = kind;
    difference.a = std::move(a);
    difference.b = std::move(b);
    found_.emplace_back(order_++, std::move(difference));
  }

  void compare_item(const Manifest::Item& item) {
    const auto& [path, entry] = item;
    if (!filter_.matches(path)) return;
    const std::string_view logical = split_rank(path).second;
    const bool is_sharded = std::holds_alternative<ShardedTensorEntry>(entry);
    if (is_sharded && !sharded_.insert(logical).second) {
      if (const Entry* other = metadata_b_->manifest.find(path)) {
        if (std::holds_alternative<ShardedTensorEntry>(*other)) matched_b_.insert(other);
      }
      return;
    }
    const auto tensor_a = index_a_.find(path, entry);
    const Entry* other = metadata_b_->manifest.find(path);
    std::string other_path = path;
    const auto& shards = index_b_.shards_of(logical);
    if (tensor_a && !shards.empty() && (other == nullptr || std::holds_alternative<ShardedTensorEntry>(*other))) {
      other = &shards.front()->second;
      other_path = shards.front()->first;
      for (const Manifest::Item* shard : shards) matched_b_.insert(&shard->second);
    }
    if (other == nullptr) return tell(DifferenceKind::kOnlyInA, path, entry_text(entry, tensor_a), "");
    matched_b_.insert(other);
    const auto tensor_b = index_b_.find(other_path, *other);
    if (!is_container(entry)) ++report_.entries;
    if (tensor_a && tensor_b) return compare_tensors(*tensor_a, *tensor_b);
    const std::string text_a = entry_text(entry, tensor_a);
    const std::string text_b = entry_text(*other, tensor_b);
    if (entry_type_name(entry) != entry_type_name(*other)) return tell(DifferenceKind::kType, path, text_a, text_b);
    if (const auto* dict = std::get_if<DictEntry>(&entry)) {
      const auto& dict_b = std::get<DictEntry>(*other);
      if (dict->keys != dict_b.keys) tell(DifferenceKind::kKeys, path, keys_text(*dict), keys_text(dict_b));
    } else if (const auto* primitive = std::get_if<PrimitiveEntry>(&entry)) {
      if (!is_equal(*primitive, std::get<PrimitiveEntry>(*other))) tell(DifferenceKind::kValue, path, text_a, text_b);
    } else if (const auto* object = std::get_if<ObjectEntry>(&entry)) {
      const auto& object_b = std::get<ObjectEntry>(*other);
      if (object->obj_type != object_b.obj_type) return tell(DifferenceKind::kType, path, text_a, text_b);
      compare_blobs({path, object->location, std::nullopt}, {path, object_b.location, std::nullopt});
    }
  }

  [[nodiscard]] bool is_equal(const PrimitiveEntry& a, const PrimitiveEntry& b) const {
    if (a.serialized_value == b.serialized_value) return true;
    if (a.type != PrimitiveType::kFloat || !options_.tolerance) return false;
    return is_close(*primitive_value(a).get_if<double>(), *primitive_value(b).get_if<double>(), *options_.tolerance);
  }

  void compare_tensors(const StoredTensor& a, const StoredTensor& b) {
    const std::string text_a = tensor_text(a.dtype, a.shape);
    const std::string text_b = tensor_text(b.dtype, b.shape);
    if (a.dtype != b.dtype) return tell(DifferenceKind::kDType, a.path, text_a, text_b);
    if (a.shape != b.shape) return tell(DifferenceKind::kShape, a.path, text_a, text_b);
    if (a.is_encoded() || b.is_encoded()) return compare_encoded(a, b);
    pairs_.push_back({a, b, {}, order_++, 0});
    Pair& pair = pairs_.back();
    pair.difference.path = a.path;
    pair.difference.kind = DifferenceKind::kValue;
    pair.difference.elements = static_cast<std::uint64_t>(element_count(a.shape));
    reads_a_.check(pair.a);
    reads_b_.check(pair.b);
    SlabCursor slabs(a.dtype, a.shape, kBatchBytes);
    while (const auto box = slabs.next()) {
      const std::uint64_t bytes = dense_bytes(a.dtype, box->sizes);
      if (batch_bytes_ > 0 && batch_bytes_ + bytes > kBatchBytes) flush(&pair);
      jobs_.push_back({&pair, batch_bytes_, bytes});
      boxes_.push_back(*box);
      batch_bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    }
  }

  /// Reads the batch and compares it. Pairs other than `current` are complete then.
  void flush(const Pair* current = nullptr) {
    if (memory_a_.size() < batch_bytes_) {
      memory_a_.resize(batch_bytes_);
      memory_b_.resize(batch_bytes_);
    }
    for (std::size_t i = 0; i < jobs_.size(); ++i) {
      reads_a_.add(jobs_[i].pair->a, boxes_[i], memory_a_.data() + jobs_[i].offset);
      reads_b_.add(jobs_[i].pair->b, boxes_[i], memory_b_.data() + jobs_[i].offset);
    }
    reads_a_.run();
    reads_b_.run();
    for (const Job& job : jobs_) {
      Pair& pair = *job.pair;
      const auto a = std::span(memory_a_).subspan(job.offset, job.bytes);
      const auto b = std::span(memory_b_).subspan(job.offset, job.bytes);
      if (std::memcmp(a.data(), b.data(), a.size()) != 0) {
        ElementComparison(pair.a.dtype, options_.tolerance).compare(a, b, pair.compared, pair.difference);
      }
      pair.compared += job.bytes / item_size(pair.a.dtype);
      report_.bytes += job.bytes;
    }
    jobs_.clear();
    boxes_.clear();
    batch_bytes_ = 0;
    while (!pairs_.empty() && &pairs_.front() != current) {
      Pair& pair = pairs_.front();
      if (pair.difference.differing > 0) {
        pair.difference.a = tensor_text(pair.a.dtype, pair.a.shape);
        pair.difference.b = pair.difference.a;
        found_.emplace_back(pair.order, std::move(pair.difference));
      }
      pairs_.pop_front();
    }
    check_stop();
  }

  void compare_encoded(const StoredTensor& a, const StoredTensor& b) {
    bool alike = a.pieces.size() == b.pieces.size();
    for (std::size_t i = 0; alike && i < a.pieces.size(); ++i) {
      alike = a.pieces[i].box == b.pieces[i].box && a.pieces[i].tensor.serializer == b.pieces[i].tensor.serializer;
    }
    if (!alike) {
      const auto text = [](const StoredTensor& tensor) {
        return tensor_text(tensor.dtype, tensor.shape) + " in " + std::to_string(tensor.pieces.size()) + " pieces as " +
               tensor.pieces.front().tensor.serializer + ", which can't be compared";
      };
      return tell(DifferenceKind::kType, a.path, text(a), text(b));
    }
    for (std::size_t i = 0; i < a.pieces.size(); ++i) {
      const TensorEntry& piece_a = a.pieces[i].tensor;
      const TensorEntry& piece_b = b.pieces[i].tensor;
      if (!compare_blobs({a.path, piece_a.location, piece_a.byte_range},
                         {b.path, piece_b.location, piece_b.byte_range})) {
        return;
      }
    }
  }

  /// False when they differ, which is told.
  bool compare_blobs(const Blob& a, const Blob& b) {
    ObjectStream stream_a(a.path, a.location, a.range, storage_a_, options_.io);
    ObjectStream stream_b(b.path, b.location, b.range, storage_b_, options_.io);
    if (stream_a.size() != stream_b.size()) {
      tell(DifferenceKind::kValue, a.path, std::to_string(stream_a.size()) + " bytes",
           std::to_string(stream_b.size()) + " bytes");
      return false;
    }
    std::span<const std::byte> part_a;
    std::span<const std::byte> part_b;
    for (std::uint64_t at = 0; at < stream_a.size();) {
      if (part_a.empty()) part_a = stream_a.next();
      if (part_b.empty()) part_b = stream_b.next();
      const std::size_t count = std::min(part_a.size(), part_b.size());
      if (count == 0) throw Error(ErrorCode::kInternal, "entry " + quote_text(a.path) + ": its object ended early");
      const auto end = part_a.begin() + static_cast<std::ptrdiff_t>(count);
      const auto differs = std::mismatch(part_a.begin(), end, part_b.begin()).first;
      if (differs != end) {
        const auto first = at + static_cast<std::uint64_t>(differs - part_a.begin());
        const std::string text =
            std::to_string(stream_a.size()) + " bytes, which differ from byte " + std::to_string(first) + " on";
        tell(DifferenceKind::kValue, a.path, text, text);
        return false;
      }
      report_.bytes += count;
      at += count;
      part_a = part_a.subspan(count);
      part_b = part_b.subspan(count);
    }
    return true;
  }

  const DiffOptions& options_;
  PathFilter filter_;
  std::shared_ptr<const SnapshotMetadata> metadata_a_;
  std::shared_ptr<const SnapshotMetadata> metadata_b_;
  Storage& storage_a_;
  Storage& storage_b_;
  TensorIndex index_a_;
  TensorIndex index_b_;
  ProgressMeter meter_;
  BoxReads reads_a_;
  BoxReads reads_b_;

  std::unordered_set<const Entry*> matched_b_;
  std::unordered_set<std::string_view> sharded_;  // paths without rank that were looked at
  std::size_t order_ = 0;
  std::vector<std::pair<std::size_t, Difference>> found_;
  std::deque<Pair> pairs_;  // whose comparison is not complete; jobs point into it
  std::vector<Job> jobs_;
  std::vector<Box> boxes_;  // of the jobs
  std::uint64_t batch_bytes_ = 0;
  std::vector<std::byte> memory_a_;
  std::vector<std::byte> memory_b_;
  DiffReport report_;
};

}  // namespace

std::string_view to_string(DifferenceKind kind) noexcept {
  switch (kind) {
    case DifferenceKind::kOnlyInA:
      return "ONLY_IN_A";
    case DifferenceKind::kOnlyInB:
      return "ONLY_IN_B";
    case DifferenceKind::kType:
      return "TYPE";
    case DifferenceKind::kDType:
      return "DTYPE";
    case DifferenceKind::kShape:
      return "SHAPE";
    case DifferenceKind::kKeys:
      return "KEYS";
    case DifferenceKind::kValue:
      break;
  }
  return "VALUE";
}

DiffReport diff(const Snapshot& a, const Snapshot& b, const DiffOptions& options) {
  return Comparison(a, b, options).run();
}

}  // namespace torchsnapshot
