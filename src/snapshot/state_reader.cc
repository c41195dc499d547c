#include "snapshot/state_reader.h"

#include <algorithm>
#include <memory>
#include <unordered_map>
#include <variant>

#include "core/path_codec.h"
#include "manifest/primitive.h"
#include "pipeline/pipeline.h"
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

std::unordered_map<std::string_view, std::vector<const ViewEntry*>> entries_by_key(const RankView& view) {
  std::unordered_map<std::string_view, std::vector<const ViewEntry*>> groups;
  for (const ViewEntry& entry : view.entries()) {
    const std::string_view path = entry.path;
    groups[path.substr(0, path.find('/'))].push_back(&entry);
  }
  return groups;
}

StateReader::StateReader(AllocateFn allocate)
    : allocate_(allocate ? std::move(allocate) : AllocateFn(allocate_owned)) {}

std::size_t StateReader::add(const std::string& path, const std::vector<const ViewEntry*>& entries, const Value* target,
                             bool exact, RestoreReport* report) {
  FlatState flat_target;
  std::unordered_map<std::string_view, const Value*> targets;
  if (target != nullptr) {
    flatten(*target, path, flat_target);
    targets.reserve(flat_target.leaves.size());
    for (const FlatLeaf& leaf : flat_target.leaves) targets.emplace(leaf.path, leaf.value);
  }

  Planning planning{.tree = trees_.size(), .report = report, .misfits = {}};
  PendingTree& tree = trees_.emplace_back(PendingTree{.path = path, .containers = {}, .leaves = {}});
  for (const ViewEntry* item : entries) {
    if (is_container(*item->entry)) {
      tree.containers.push_back(to_container(item->path, *item->entry));
      continue;
    }
    const Value* leaf_target = nullptr;
    if (const auto found = targets.find(item->path); found != targets.end()) {
      leaf_target = found->second;
      targets.erase(found);
    } else if (target != nullptr && report != nullptr) {
      report->unexpected.push_back(item->path);
    }
    tree.leaves.emplace_back(item->path, plan_leaf(item->path, *item->entry, leaf_target, planning));
  }
  if (report != nullptr) {
    for (const FlatLeaf& leaf : flat_target.leaves) {
      if (targets.contains(leaf.path)) report->missing.push_back(leaf.path);
    }
  }
  if (exact && !planning.misfits.empty()) {
    std::string message = "'" + path + "' can't take what was saved; nothing was changed:";
    for (const std::string& misfit : planning.misfits) message += "\n  " + misfit;
    throw Error(ErrorCode::kMismatch, message);
  }
  return planning.tree;
}

Value StateReader::plan_leaf(const std::string& path, const Entry& entry, const Value* target, Planning& planning) {
  const std::optional<TensorType> saved = tensor_type(entry);
  const std::optional<TensorType> wanted = target == nullptr ? std::nullopt : tensor_type(*target);
  if (target != nullptr && saved != wanted) {
    if (planning.report != nullptr) planning.report->mismatched.push_back(path);
    if (wanted) planning.misfits.push_back("'" + path + "': saved " + describe(saved) + ", target " + describe(wanted));
    target = nullptr;
  }
  if (saved) return plan_tensor(path, entry, target, planning);
  if (const auto* primitive = std::get_if<PrimitiveEntry>(&entry)) {
    try {
      return primitive_value(*primitive);
    } catch (const Error& error) {
      throw error.with_context("entry '" + path + "'");
    }
  }
  const auto& object = std::get<ObjectEntry>(entry);
  want_blob(path, object.location, std::nullopt, 0, planning);
  return Opaque{.serializer = object.serializer, .type_name = object.obj_type, .bytes = {}};
}

Value StateReader::plan_tensor(const std::string& path, const Entry& entry, const Value* target, Planning& planning) {
  const TensorType saved = *tensor_type(entry);
  const std::vector<ShardEntry> pieces = stored_pieces(entry);
  const bool encoded = std::any_of(pieces.begin(), pieces.end(),
                                   [](const ShardEntry& piece) { return piece.tensor.serializer != kBufferProtocol; });
  if (encoded) {
    EncodedTensor result{.dtype = saved.dtype, .shape = saved.shape, .parts = {}, .target = nullptr, .owner = nullptr};
    for (const ShardEntry& piece : pieces) {
      want_blob(path, piece.tensor.location, piece.tensor.byte_range, result.parts.size(), planning);
      result.parts.push_back({.box = piece.box, .serializer = piece.tensor.serializer, .bytes = {}});
    }
    if (target != nullptr) result.target = std::make_shared<const Value>(*target);
    return result;
  }
  if (target != nullptr) {
    if (const auto* sharded = target->get_if<ShardedTensor>()) {
      for (const LocalShard& shard : sharded->shards) planner_.add(path, pieces, shard.box, shard.view);
      return *target;
    }
    if (const auto* view = target->get_if<TensorView>()) {
      planner_.add(path, pieces, Box::whole(saved.shape), *view);
      return *target;
    }
  }
  TensorView fresh = allocate_(saved.dtype, saved.shape);
  planner_.add(path, pieces, Box::whole(saved.shape), fresh);
  return fresh;
}

void StateReader::want_blob(const std::string& path, const std::string& location, std::optional<ByteRange> range,
                            std::size_t part, const Planning& planning) {
  // Equal objects share one location (None, for example): read it once.
  const auto begin = range ? std::optional(range->begin) : std::nullopt;
  const auto [found, is_new] = blob_index_.try_emplace({location, begin}, blobs_.size());
  if (is_new) {
    blobs_.push_back({.path = path, .location = location, .range = range});
  } else if (blobs_[found->second].range != range) {
    found->second = blobs_.size();
    blobs_.push_back({.path = path, .location = location, .range = range});
  }
  pending_blobs_.push_back(
      {.blob = found->second, .tree = planning.tree, .leaf = trees_[planning.tree].leaves.size(), .part = part});
}

void StateReader::read(Storage& storage, const IoOptions& io) {
  const std::vector<SharedBytes> bytes = run_reads(planner_.build(), blobs_, storage, io);
  for (const PendingBlob& pending : pending_blobs_) {
    Value& leaf = trees_[pending.tree].leaves[pending.leaf].second;
    if (auto* opaque = leaf.get_if<Opaque>()) {
      opaque->bytes = bytes[pending.blob];
    } else {
      leaf.get_if<EncodedTensor>()->parts[pending.part].bytes = bytes[pending.blob];
    }
  }
}

Value StateReader::take_result(std::size_t index) {
  PendingTree& tree = trees_[index];
  return inflate(tree.path, std::move(tree.containers), std::move(tree.leaves));
}

}  // namespace torchsnapshot
