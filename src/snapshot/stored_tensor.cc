#include "snapshot/stored_tensor.h"

#include <algorithm>
#include <memory>
#include <set>
#include <utility>
#include <variant>

#include "core/text.h"
#include "manifest/primitive.h"
#include "manifest/rank_view.h"
#include "plan/glob.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::uint64_t kSlabBytes = 32ULL << 20;

const std::vector<const Manifest::Item*> kNoItems;

}  // namespace

bool StoredTensor::is_encoded() const noexcept {
  return std::any_of(pieces.begin(), pieces.end(),
                     [](const ShardEntry& piece) { return piece.tensor.serializer != kBufferProtocol; });
}

TensorIndex::TensorIndex(const SnapshotMetadata& metadata) {
  for (const Manifest::Item& item : metadata.manifest) {
    if (std::holds_alternative<ShardedTensorEntry>(item.second)) {
      sharded_[split_rank(item.first).second].push_back(&item);
    }
  }
}

const std::vector<const Manifest::Item*>& TensorIndex::shards_of(std::string_view logical_path) const {
  const auto found = sharded_.find(logical_path);
  return found == sharded_.end() ? kNoItems : found->second;
}

std::optional<StoredTensor> TensorIndex::find(const std::string& path, const Entry& entry) const {
  if (const auto* tensor = std::get_if<TensorEntry>(&entry)) {
    return StoredTensor{path, tensor->dtype, tensor->shape, stored_pieces(entry)};
  }
  if (const auto* chunked = std::get_if<ChunkedTensorEntry>(&entry)) {
    return StoredTensor{path, chunked->dtype, chunked->shape, chunked->chunks};
  }
  if (!std::holds_alternative<ShardedTensorEntry>(entry)) return std::nullopt;
  ShardedTensorEntry whole;
  std::set<std::pair<Dims, Dims>> boxes;
  for (const Manifest::Item* item : shards_of(split_rank(path).second)) {
    for (const ShardEntry& shard : std::get<ShardedTensorEntry>(item->second).shards) {
      if (boxes.emplace(shard.box.offsets, shard.box.sizes).second) whole.shards.push_back(shard);
    }
  }
  Dims shape;
  try {
    shape = global_shape(whole);
  } catch (const Error& error) {
    throw error.with_context("entry " + quote_text(path));
  }
  const DType dtype = whole.shards.front().tensor.dtype;
  return StoredTensor{path, dtype, std::move(shape), std::move(whole.shards)};
}

SlabCursor::SlabCursor(DType dtype, Dims shape, std::uint64_t max_bytes) : shape_(std::move(shape)) {
  at_.assign(shape_.size(), 0);
  done_ = std::any_of(shape_.begin(), shape_.end(), [](std::int64_t size) { return size == 0; });
  if (done_) return;
  // From the inside outwards: all dimensions that fit as a whole, then as many rows of the next one as fit.
  std::uint64_t inner = item_size(dtype);
  std::size_t fitting = shape_.size();
  while (fitting > 0 && inner <= max_bytes / static_cast<std::uint64_t>(shape_[fitting - 1])) {
    inner *= static_cast<std::uint64_t>(shape_[--fitting]);
  }
  whole_ = fitting == 0;
  if (whole_) return;
  split_ = fitting - 1;
  rows_ = static_cast<std::int64_t>(std::max<std::uint64_t>(1, max_bytes / inner));
}

std::optional<Box> SlabCursor::next() {
  if (done_) return std::nullopt;
  Box box = Box::whole(shape_);
  if (whole_) {
    done_ = true;
    return box;
  }
  box.offsets = at_;
  for (std::size_t d = 0; d < split_; ++d) box.sizes[d] = 1;
  box.sizes[split_] = std::min(rows_, shape_[split_] - at_[split_]);
  at_[split_] += box.sizes[split_];
  for (std::size_t d = split_; at_[d] == shape_[d]; --d) {
    if (d == 0) {
      done_ = true;
      break;
    }
    at_[d] = 0;
    ++at_[d - 1];
  }
  return box;
}

void BoxReads::check(const StoredTensor& tensor) {
  if (tensor.is_encoded()) {
    throw Error(ErrorCode::kUnsupported, "entry " + quote_text(tensor.path) + " is stored with the serializer '" +
                                             tensor.pieces.front().tensor.serializer +
                                             "', not as plain elements: its bytes can be had as they are");
  }
  ReadPlanner planner;
  planner.require(tensor.path, tensor.pieces, Box::whole(tensor.shape));
  const std::vector<ObjectNeed> needs = planner.needs();
  if (io_.checksums) {
    std::vector<std::string> objects;
    for (const ObjectNeed& need : needs) objects.push_back(need.location);
    checksums_.load(objects, storage_, io_);
  }
  sizes_.merge(check_objects(needs, io_.checksums ? &checksums_ : nullptr, storage_, io_.stop));
}

void BoxReads::add(const StoredTensor& tensor, const Box& box, std::byte* memory) {
  planner_.add(tensor.path, tensor.pieces, box, TensorView::dense(memory, tensor.dtype, box.sizes));
}

void BoxReads::run() {
  run_reads(planner_.build(), {storage_, io_, sizes_, io_.checksums ? &checksums_ : nullptr, corruptions_, meter_});
}

void stream_tensor(const StoredTensor& tensor, Storage& storage, const IoOptions& io,
                   const std::function<void(std::span<const std::byte>)>& sink) {
  ProgressMeter meter(tensor.nbytes(), io.on_progress);
  BoxReads reads(storage, io, meter);
  reads.check(tensor);
  std::vector<std::byte> memory;
  SlabCursor slabs(tensor.dtype, tensor.shape, kSlabBytes);
  while (const auto box = slabs.next()) {
    const std::uint64_t bytes = dense_bytes(tensor.dtype, box->sizes);
    if (memory.size() < bytes) memory.resize(bytes);
    reads.add(tensor, *box, memory.data());
    reads.run();
    sink(std::span(memory).first(bytes));
  }
  meter.finish();
}

ObjectStream::ObjectStream(std::string path, std::string location, std::optional<ByteRange> range, Storage& storage,
                           const IoOptions& io)
    : path_(std::move(path)), location_(std::move(location)), storage_(storage), io_(io) {
  try {
    const auto size = storage_.sizes(std::span(&location_, 1), io_.stop).front();
    if (size) {
      range_ = range.value_or(ByteRange{0, *size});
      reads_ = range_;
      if (io_.checksums) checksums_.load({location_}, storage_, io_);
      const ChecksumTable* table = io_.checksums ? checksums_.find(location_) : nullptr;
      if (range_.end > *size || (table != nullptr && table->object_bytes != *size)) {
        const std::uint64_t expected = table != nullptr ? table->object_bytes : range_.end;
        throw Error(ErrorCode::kCorrupt, "object " + quote_text(location_) + " has " + std::to_string(*size) +
                                             " bytes, expected " + std::to_string(expected));
      }
      if (table != nullptr) {
        reads_ = covering_blocks(*table, range_);
        verifier_ = std::make_unique<ChecksumVerifier>(*table);
      }
    } else {  // only the whole object can tell how long it is
      whole_ = storage_.read_all(location_, UINT64_MAX, io_.stop);
      range_ = range.value_or(ByteRange{0, whole_.size()});
      reads_ = range_;
      if (range_.end > whole_.size()) {
        throw Error(ErrorCode::kCorrupt,
                    "object " + quote_text(location_) + " ends before byte " + std::to_string(range_.end));
      }
    }
    at_ = reads_.begin;
  } catch (const Error& error) {
    throw error.with_context("entry " + quote_text(path_));
  }
}

std::span<const std::byte> ObjectStream::next() {
  constexpr std::uint64_t kPartBytes = 8ULL << 20;
  if (io_.poll) io_.poll();
  if (!whole_.empty()) {
    const ByteRange rest{at_, range_.end};
    at_ = range_.end;
    return std::as_bytes(std::span(whole_)).subspan(rest.begin, rest.size());
  }
  while (at_ < reads_.end) {
    const ByteRange part{at_, std::min(reads_.end, at_ + kPartBytes)};
    memory_.resize(part.size());
    try {
      if (!reader_) reader_ = storage_.open(location_, io_.stop);
      reader_->read(part.begin, memory_);
    } catch (const Error& error) {
      throw error.with_context("entry " + quote_text(path_));
    }
    at_ = part.end;
    if (verifier_) {
      CorruptionLog log(false);
      for (const BlockMismatch& mismatch : verifier_->add(part.begin, memory_)) {
        log.add({{path_}, location_, mismatch.range, mismatch.expected, mismatch.found});
      }
    }
    const ByteRange wanted{std::max(part.begin, range_.begin), std::min(part.end, range_.end)};
    if (wanted.begin < wanted.end) {
      return std::span<const std::byte>(memory_).subspan(wanted.begin - part.begin, wanted.size());
    }
  }
  return {};
}

std::string tensor_text(DType dtype, const Dims& shape) {
  std::string text = std::string(dtype_name(dtype)) + " [";
  for (std::size_t d = 0; d < shape.size(); ++d) text += (d == 0 ? "" : ", ") + std::to_string(shape[d]);
  return text + "]";
}

std::string primitive_text(const PrimitiveEntry& entry) {
  const Value value = primitive_value(entry);
  if (const auto* number = value.get_if<double>()) return python_float_repr(*number);
  if (const auto* text = value.get_if<std::string>()) return quote_text(*text);
  if (const auto* bytes = value.get_if<Bytes>()) return "b" + quote_text(bytes->data);
  return entry.serialized_value;  // int, bool
}

struct PathFilter::Patterns {
  std::vector<Glob> globs;
};

PathFilter::PathFilter(const std::vector<std::string>& patterns) : patterns_(std::make_unique<Patterns>()) {
  for (std::string_view pattern : patterns) {
    while (pattern.size() > 1 && pattern.ends_with('/')) pattern.remove_suffix(1);  // as a shell completes a folder
    patterns_->globs.emplace_back(pattern);
  }
}

PathFilter::~PathFilter() = default;

bool PathFilter::matches(std::string_view path) const {
  if (patterns_->globs.empty()) return true;
  const std::size_t rank_end = std::min(path.find('/'), path.size());
  for (std::size_t end = rank_end;; end = std::min(path.find('/', end + 1), path.size())) {
    const std::string_view above = path.substr(0, end);
    for (const Glob& glob : patterns_->globs) {
      if (glob.matches(above) || (end > rank_end && glob.matches(above.substr(rank_end + 1)))) return true;
    }
    if (end == path.size()) return false;
  }
}

}  // namespace torchsnapshot
