#include "snapshot/state_reader.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <variant>

#include "core/path_codec.h"
#include "core/string_index.h"
#include "manifest/primitive.h"
#include "pipeline/options.h"
#include "pipeline/read_pipeline.h"
#include "snapshot/internal.h"
#include "snapshot/share_session.h"
#include "snapshot/shared_reads.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

/// Memory owned by the view, for callers that gave no allocator.
TensorView allocate_owned(DType dtype, const Dims& shape) {
  const std::uint64_t bytes = dense_bytes(dtype, shape);
  auto memory = std::make_shared_for_overwrite<std::byte[]>(std::max<std::uint64_t>(bytes, 1));
  std::byte* data = memory.get();
  return TensorView::dense(data, dtype, shape, std::move(memory));
}

std::string describe(const std::optional<TensorType>& type) {
  if (!type) return "no tensor";
  std::string text(dtype_name(type->dtype));
  text += " [";
  for (std::size_t d = 0; d < type->shape.size(); ++d) text += (d == 0 ? "" : ", ") + std::to_string(type->shape[d]);
  return text + "]";
}

bool is_encoded(const std::vector<ShardEntry>& pieces) {
  return std::any_of(pieces.begin(), pieces.end(),
                     [](const ShardEntry& piece) { return piece.tensor.serializer != kBufferProtocol; });
}

/// True when the engine can write to every piece of the target's memory.
bool is_writable(const Value& target) {
  if (const auto* view = target.get_if<TensorView>()) return has_distinct_elements(*view);
  if (const auto* sharded = target.get_if<ShardedTensor>()) {
    return std::all_of(sharded->shards.begin(), sharded->shards.end(),
                       [](const LocalShard& shard) { return has_distinct_elements(shard.view); });
  }
  return true;
}

/// An entry whose bytes lie in one piece as they are; null for others.
const TensorEntry* plain_entry(const Entry& entry) {
  const auto* tensor = std::get_if<TensorEntry>(&entry);
  return tensor != nullptr && tensor->serializer == kBufferProtocol ? tensor : nullptr;
}

/// Whether the target has the dtype and shape that were saved (or is, as the entry, no tensor).
bool has_type_of(const Value& target, const Entry& entry) {
  const auto* view = target.get_if<TensorView>();
  const auto* tensor = std::get_if<TensorEntry>(&entry);
  if (view != nullptr && tensor != nullptr) return view->dtype == tensor->dtype && view->shape == tensor->shape;
  return tensor_type(entry) == tensor_type(target);
}

/// The leaves of a target by path. They mostly come in the order in which they were saved: an index is made when not.
class LeafSearch {
 public:
  explicit LeafSearch(const std::vector<FlatLeaf>& leaves) : leaves_(leaves), is_taken_(leaves.size()) {}

  /// The value at the path; null when there is none, or it was taken.
  const Value* take(const std::string& path) {
    if (next_ == leaves_.size() || leaves_[next_].path != path) {
      if (!index_) make_index();
      const auto found = index_->find(path);
      if (!found || is_taken_[*found]) return nullptr;
      next_ = *found;
    }
    if (is_taken_[next_]) return nullptr;
    is_taken_[next_] = true;
    return leaves_[next_++].value;
  }

  /// What was not taken.
  [[nodiscard]] std::vector<const FlatLeaf*> rest() const {
    std::vector<const FlatLeaf*> rest;
    for (std::size_t i = 0; i < leaves_.size(); ++i) {
      if (!is_taken_[i]) rest.push_back(&leaves_[i]);
    }
    return rest;
  }

 private:
  void make_index() {
    index_ = std::make_unique<StringIndex>(leaves_.size());
    for (std::size_t i = 0; i < leaves_.size(); ++i) index_->add(leaves_[i].path, i);
  }

  const std::vector<FlatLeaf>& leaves_;
  std::vector<bool> is_taken_;
  std::size_t next_ = 0;
  std::unique_ptr<StringIndex> index_;
};

FlatContainer to_container(const std::string& path, const Entry& entry) {
  FlatContainer container;
  container.path = path;
  if (const auto* dict = std::get_if<DictEntry>(&entry)) {
    container.ordered = dict->ordered;
    container.keys = dict->keys;
  } else {
    container.is_list = true;
  }
  return container;
}

}  // namespace

std::optional<TensorType> tensor_type(const Value& value) {
  if (const auto* view = value.get_if<TensorView>()) return TensorType{view->dtype, view->shape};
  if (const auto* sharded = value.get_if<ShardedTensor>()) return TensorType{sharded->dtype, sharded->shape};
  if (const auto* encoded = value.get_if<EncodedTensor>()) return TensorType{encoded->dtype, encoded->shape};
  return std::nullopt;
}

std::optional<TensorType> tensor_type(const Entry& entry) {
  if (const auto* tensor = std::get_if<TensorEntry>(&entry)) return TensorType{tensor->dtype, tensor->shape};
  if (const auto* chunked = std::get_if<ChunkedTensorEntry>(&entry)) return TensorType{chunked->dtype, chunked->shape};
  if (const auto* sharded = std::get_if<ShardedTensorEntry>(&entry)) {
    if (sharded->shards.empty()) return TensorType{};
    return TensorType{sharded->shards.front().tensor.dtype, global_shape(*sharded)};
  }
  return std::nullopt;
}

bool has_distinct_elements(const TensorView& view) {
  std::vector<std::pair<std::int64_t, std::int64_t>> dims;  // stride, size
  for (std::size_t d = 0; d < view.shape.size(); ++d) {
    if (view.shape[d] == 0) return true;
    if (view.shape[d] > 1) dims.emplace_back(std::abs(view.strides[d]), view.shape[d]);
  }
  std::sort(dims.begin(), dims.end());
  std::int64_t reach = 0;  // the last element that the smaller strides can step to
  for (const auto& [stride, size] : dims) {
    if (stride <= reach) return false;
    reach += stride * (size - 1);
  }
  return true;
}

KeyGroups entries_by_key(const RankView& view) {
  KeyGroups groups;
  for (const ViewEntry& entry : view.entries()) {
    const std::string_view path = entry.path;
    groups[path.substr(0, path.find('/'))].push_back(&entry);
  }
  return groups;
}

StateReader::StateReader(AllocateFn allocate, DecodeFn decode)
    : allocate_(allocate ? std::move(allocate) : AllocateFn(allocate_owned)), decode_(std::move(decode)) {}

std::size_t StateReader::add(const std::string& path, const std::vector<const ViewEntry*>& entries, const Value* target,
                             bool exact, RestoreReport* report) {
  FlatState flat_target;
  if (target != nullptr) flatten(*target, path, flat_target);
  LeafSearch targets(flat_target.leaves);
  std::vector<FlatContainer> containers;
  std::unordered_map<std::string_view, std::size_t> dicts;  // index into containers
  for (const ViewEntry* item : entries) {
    if (!is_container(*item->entry)) continue;
    if (std::holds_alternative<DictEntry>(*item->entry)) dicts.emplace(item->path, containers.size());
    containers.push_back(to_container(item->path, *item->entry));
  }

  std::vector<Leaf> leaves;
  std::vector<std::string> paths;
  std::vector<std::string> misfits;  // tensors of the target that can't be filled, with the reason
  std::map<std::size_t, std::unordered_set<std::string_view>> left_out;  // children of dicts
  for (const ViewEntry* item : entries) {
    if (is_container(*item->entry)) continue;
    const Value* leaf_target = targets.take(item->path);
    if (leaf_target == nullptr && target != nullptr) {
      if (report != nullptr) report->unexpected.push_back(item->path);
      // A target that shards otherwise, or not at all, has no use for it (docs/format.md, "Ranks").
      const auto parent = dicts.find(parent_path(item->path));
      if (std::holds_alternative<ShardedTensorEntry>(*item->entry) && parent != dicts.end()) {
        left_out[parent->second].insert(last_component(item->path));
        continue;
      }
    }
    if (leaf_target != nullptr) {
      if (!has_type_of(*leaf_target, *item->entry)) {
        const auto saved = tensor_type(*item->entry);
        const auto wanted = tensor_type(*leaf_target);
        if (report != nullptr) report->mismatched.push_back(item->path);
        if (wanted) {
          misfits.push_back("'" + item->path + "': saved " + describe(saved) + ", target " + describe(wanted));
        }
        leaf_target = nullptr;
      } else if (!is_writable(*leaf_target)) {
        misfits.push_back("'" + item->path + "': elements of the target share memory (an expanded tensor?)");
        leaf_target = nullptr;
      }
    }
    paths.push_back(item->path);
    leaves.push_back({.item = item, .target = leaf_target, .value = false});
  }
  if (report != nullptr) {
    for (const FlatLeaf* leaf : targets.rest()) report->missing.push_back(leaf->path);
  }
  if (exact && !misfits.empty()) {
    std::string message = "'" + path + "' can't take what was saved; nothing was changed:";
    for (const std::string& misfit : misfits) message += "\n  " + misfit;
    throw Error(ErrorCode::kMismatch, message);
  }
  for (const auto& [index, names] : left_out) {
    std::erase_if(containers[index].keys,
                  [&names = names](const Key& key) { return names.contains(encode_component(key.text)); });
  }

  const std::size_t tree = trees_.size();
  trees_.push_back({.inflater = Inflater(path, std::move(containers), std::move(paths)), .leaves = std::move(leaves)});
  for (std::size_t i = 0; i < trees_[tree].leaves.size(); ++i) require(trees_[tree].leaves[i], tree, i);
  return tree;
}

void StateReader::require(Leaf& leaf, std::size_t tree, std::size_t index) {
  if (const auto* primitive = std::get_if<PrimitiveEntry>(leaf.item->entry)) {
    try {
      leaf.value = primitive_value(*primitive);
    } catch (const Error& error) {
      throw error.with_context("entry '" + leaf.item->path + "'");
    }
    return;
  }
  if (const auto* object = std::get_if<ObjectEntry>(leaf.item->entry)) {
    leaf.value = Opaque{.serializer = object->serializer, .type_name = object->obj_type, .bytes = {}, .owner = nullptr};
    want_blob(leaf, object->location, std::nullopt, {.blob = 0, .tree = tree, .leaf = index, .part = 0});
    return;
  }
  const auto* sharded = leaf.target == nullptr ? nullptr : leaf.target->get_if<ShardedTensor>();
  if (const TensorEntry* plain = plain_entry(*leaf.item->entry); plain != nullptr && sharded == nullptr) {
    planner_.require(leaf.item->path, *plain);
    return;
  }
  const TensorType saved = *tensor_type(*leaf.item->entry);
  const std::vector<ShardEntry> pieces = stored_pieces(*leaf.item->entry);
  if (is_encoded(pieces)) {
    EncodedTensor encoded{.dtype = saved.dtype, .shape = saved.shape, .parts = {}, .target = nullptr, .owner = nullptr};
    if (leaf.target != nullptr) encoded.target = std::make_shared<const Value>(*leaf.target);
    for (const ShardEntry& piece : pieces) {
      want_blob(leaf, piece.tensor.location, piece.tensor.byte_range,
                {.blob = 0, .tree = tree, .leaf = index, .part = encoded.parts.size()});
      encoded.parts.push_back({.box = piece.box, .serializer = piece.tensor.serializer, .bytes = {}});
    }
    leaf.value = std::move(encoded);
    return;
  }
  if (sharded == nullptr) {
    planner_.require(leaf.item->path, pieces, Box::whole(saved.shape));
  } else {
    for (const LocalShard& shard : sharded->shards) planner_.require(leaf.item->path, pieces, shard.box);
  }
}

void StateReader::want_blob(const Leaf& leaf, const std::string& location, std::optional<ByteRange> range,
                            PendingBlob pending) {
  // Equal objects share one location (None, for example): read it once.
  const std::uint64_t begin = range ? range->begin : UINT64_MAX;
  const auto [found, is_new] = blob_index_.try_emplace({location, begin}, blobs_.size());
  if (is_new || blobs_[found->second].range != range) {
    found->second = blobs_.size();
    blobs_.push_back({.path = leaf.item->path, .location = location, .range = range});
    planner_.require(blobs_.back());
  }
  pending.blob = found->second;
  pending_blobs_.push_back(pending);
}

void StateReader::check(Storage& storage, const IoOptions& io, ChecksumStore& checksums) {
  const std::vector<ObjectNeed> needs = planner_.needs();
  if (io.checksums) {
    std::vector<std::string> objects;
    objects.reserve(needs.size());
    for (const ObjectNeed& need : needs) objects.push_back(need.location);
    checksums.load(objects, storage, io);
  }
  verify_by_ = io.checksums ? &checksums : nullptr;
  sizes_ = check_objects(needs, verify_by_, storage, io.stop);
}

void StateReader::read_checked(Storage& storage, const IoOptions& io, CorruptionLog& corruptions,
                               ShareSession* session) {
  std::uint64_t total = 0;
  for (const BlobRead& blob : blobs_) {
    const auto size = sizes_.find(blob.location);
    total += blob.range ? blob.range->size() : size == sizes_.end() ? 0 : size->second;
  }
  for (const Tree& tree : trees_) {
    for (const Leaf& leaf : tree.leaves) {
      if (const TensorEntry* plain = plain_entry(*leaf.item->entry)) {
        total += dense_bytes(plain->dtype, plain->shape);
        continue;
      }
      const auto type = tensor_type(*leaf.item->entry);
      if (type && !leaf.value.get_if<EncodedTensor>()) total += dense_bytes(type->dtype, type->shape);
    }
  }
  ProgressMeter meter(total, io.on_progress);
  const ReadContext context{storage, io, sizes_, verify_by_, corruptions, meter};
  place_blobs(read_blobs(context, session));
  plan_tensors();
  try {
    ReadPlan plan = planner_.build();
    if (session != nullptr && session->is_sharing()) {
      run_shared_reads(plan, context, *session);
      session->finish();
    }
    run_reads(plan, context);
  } catch (const Error& error) {
    // What can be checked before was, so this is rare: the storage failed half-way, or bits have flipped.
    throw error.with_context("tensors of the target may hold a mixture of old and restored values");
  }
  meter.finish();
  pass_on_notices(storage, io);
}

std::vector<std::optional<SharedBytes>> StateReader::read_blobs(const ReadContext& context, ShareSession* session) {
  if (session == nullptr || !session->is_sharing()) return run_blob_reads(blobs_, context);
  // Bytes are a tensor of bytes to those who share.
  std::map<std::string, ObjectRead> objects;
  std::vector<std::shared_ptr<std::byte[]>> memories(blobs_.size());
  std::vector<ByteRange> ranges(blobs_.size());
  for (std::size_t i = 0; i < blobs_.size(); ++i) {
    const BlobRead& blob = blobs_[i];
    const auto size = sizes_.find(blob.location);
    if (size == sizes_.end()) continue;
    ranges[i] = blob.range.value_or(ByteRange{0, size->second});
    if (ranges[i].size() == 0) continue;
    memories[i] = std::make_shared_for_overwrite<std::byte[]>(ranges[i].size());
    const Dims shape{static_cast<std::int64_t>(ranges[i].size())};
    ObjectRead& object = objects[blob.location];
    object.location = blob.location;
    object.tensors.push_back({.path = blob.path,
                              .range = ranges[i],
                              .piece_begin = 0,
                              .piece_shape = shape,
                              .region = Box::whole(shape),
                              .view = TensorView::dense(memories[i].get(), DType::kUInt8, shape),
                              .of_whole = true});
  }
  ReadPlan plan;
  for (auto& [location, object] : objects) {
    std::sort(object.tensors.begin(), object.tensors.end(),
              [](const TensorRead& a, const TensorRead& b) { return a.range.begin < b.range.begin; });
    plan.objects.push_back(std::move(object));
  }
  const std::vector<Corruption> damaged = run_shared_reads(plan, context, *session);
  std::unordered_set<const std::byte*> not_shared;
  for (const ObjectRead& object : plan.objects) {
    for (const TensorRead& read : object.tensors) not_shared.insert(read.view.data);
  }
  std::vector<std::optional<SharedBytes>> results(blobs_.size());
  std::vector<BlobRead> rest;
  std::vector<std::size_t> rest_index;
  for (std::size_t i = 0; i < blobs_.size(); ++i) {
    const BlobRead& blob = blobs_[i];
    if (memories[i] == nullptr || not_shared.contains(memories[i].get())) {
      rest.push_back(blob);
      rest_index.push_back(i);
    } else if (std::none_of(damaged.begin(), damaged.end(), [&](const Corruption& found) {
                 return found.location == blob.location && found.range.begin < ranges[i].end &&
                        found.range.end > ranges[i].begin;
               })) {
      results[i] = SharedBytes(std::span<const std::byte>(memories[i].get(), ranges[i].size()), memories[i]);
    }
  }
  std::vector<std::optional<SharedBytes>> read = run_blob_reads(rest, context);
  for (std::size_t i = 0; i < rest.size(); ++i) results[rest_index[i]] = std::move(read[i]);
  return results;
}

void StateReader::place_blobs(const std::vector<std::optional<SharedBytes>>& bytes) {
  for (const PendingBlob& pending : pending_blobs_) {
    Leaf& leaf = trees_[pending.tree].leaves[pending.leaf];
    if (leaf.is_kept) continue;
    if (!bytes[pending.blob]) {
      keep_target(leaf);
    } else if (auto* opaque = leaf.value.get_if<Opaque>()) {
      opaque->bytes = *bytes[pending.blob];
    } else {
      leaf.value.get_if<EncodedTensor>()->parts[pending.part].bytes = *bytes[pending.blob];
    }
  }
  if (!decode_) return;
  for (const PendingBlob& pending : pending_blobs_) {
    if (pending.part != 0) continue;  // the leaf's parts are decoded together
    Leaf& leaf = trees_[pending.tree].leaves[pending.leaf];
    if (leaf.is_kept) continue;
    std::shared_ptr<void> decoded = decode_(leaf.item->path, blobs_[pending.blob].location, leaf.value);
    if (auto* opaque = leaf.value.get_if<Opaque>()) {
      opaque->owner = std::move(decoded);
      opaque->bytes = {};
    } else {
      leaf.value.get_if<EncodedTensor>()->owner = std::move(decoded);
      leaf.value.get_if<EncodedTensor>()->parts.clear();
    }
  }
}

void StateReader::keep_target(Leaf& leaf) {
  if (leaf.target == nullptr) {
    throw Error(ErrorCode::kCorrupt,
                "entry '" + leaf.item->path +
                    "': its bytes have changed since they were saved, and the target has no value of "
                    "its own that could stay");
  }
  leaf.value = *leaf.target;
  leaf.is_kept = true;
}

void StateReader::plan_tensors() {
  for (Tree& tree : trees_) {
    for (Leaf& leaf : tree.leaves) {
      const auto* view = leaf.target == nullptr ? nullptr : leaf.target->get_if<TensorView>();
      if (const TensorEntry* plain = plain_entry(*leaf.item->entry);
          plain != nullptr && (leaf.target == nullptr || view != nullptr)) {
        TensorView memory = view != nullptr ? *view : allocate_(plain->dtype, plain->shape);
        planner_.add(leaf.item->path, *plain, memory);
        leaf.value = std::move(memory);
        continue;
      }
      const auto saved = tensor_type(*leaf.item->entry);
      if (!saved || leaf.is_kept || leaf.value.get_if<EncodedTensor>() != nullptr) continue;
      const std::vector<ShardEntry> pieces = stored_pieces(*leaf.item->entry);
      const auto* sharded = leaf.target == nullptr ? nullptr : leaf.target->get_if<ShardedTensor>();
      if (sharded != nullptr) {
        for (const LocalShard& shard : sharded->shards) {
          planner_.add(leaf.item->path, pieces, shard.box, shard.view, shard.box == Box::whole(saved->shape));
        }
        leaf.value = *leaf.target;
        continue;
      }
      // An encoded target (a conj view, for example) gets a new tensor, from which the face fills it.
      TensorView memory = view != nullptr ? *view : allocate_(saved->dtype, saved->shape);
      planner_.add(leaf.item->path, pieces, Box::whole(saved->shape), memory, true);
      leaf.value = std::move(memory);
    }
  }
}

Value StateReader::take_result(std::size_t index) {
  Tree& tree = trees_[index];
  std::vector<Value> values;
  values.reserve(tree.leaves.size());
  for (Leaf& leaf : tree.leaves) values.push_back(std::move(leaf.value));
  return tree.inflater.build(std::move(values));
}

}  // namespace torchsnapshot
