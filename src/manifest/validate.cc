#include "manifest/validate.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_map>

#include "core/path_codec.h"
#include "core/text.h"
#include "manifest/primitive.h"
#include "manifest/rank_view.h"
#include "manifest/tiling.h"
#include "state/flatten.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

[[noreturn]] void corrupt(const std::string& what) {
  throw Error(ErrorCode::kCorrupt, what);
}

std::string to_text(std::span<const std::int64_t> dims) {
  constexpr std::size_t kShownDims = 16;
  std::string text = "[";
  for (std::size_t d = 0; d < std::min(dims.size(), kShownDims); ++d) {
    if (d != 0) text += ", ";
    text += std::to_string(dims[d]);
  }
  return text + (dims.size() > kShownDims ? ", ...]" : "]");
}

/// Bytes of the dense elements.
std::uint64_t checked_bytes(DType dtype, std::span<const std::int64_t> shape) {
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] < 0) {
      corrupt("negative size " + std::to_string(shape[d]) + " in dimension " + std::to_string(d) + " of the shape");
    }
  }
  try {
    return dense_bytes(dtype, shape);
  } catch (const Error&) {
    corrupt("the size of shape " + to_text(shape) + " overflows");
  }
}

/// Bytes that an axis, the elements, and scale and zero point of each channel take, for some axis.
bool fits_per_channel(std::uint64_t range, std::uint64_t elements, std::span<const std::int64_t> shape) {
  constexpr std::uint64_t kAxisBytes = 8;
  constexpr std::uint64_t kChannelBytes = 16;
  if (range < elements || range - elements < kAxisBytes) return false;
  const std::uint64_t rest = range - elements - kAxisBytes;
  return std::any_of(shape.begin(), shape.end(), [rest](std::int64_t size) {
    return rest % kChannelBytes == 0 && static_cast<std::uint64_t>(size) == rest / kChannelBytes;
  });
}

void check_tensor(const TensorEntry& tensor) {
  constexpr std::uint64_t kScaleAndZeroPoint = 16;
  check_location(tensor.location);
  const std::uint64_t bytes = checked_bytes(tensor.dtype, tensor.shape);
  const bool raw = tensor.serializer == kBufferProtocol;
  const bool per_tensor = tensor.serializer == kPerTensorQTensor;
  const bool per_channel = tensor.serializer == kPerChannelQTensor;
  if (!raw && !per_tensor && !per_channel) {
    if (tensor.serializer == kTorchSave) return;
    throw Error(ErrorCode::kUnsupported, "unknown serializer " + quote_text(tensor.serializer));
  }
  if (raw == is_quantized(tensor.dtype)) {
    corrupt("serializer '" + tensor.serializer + "' can't hold dtype " + std::string(dtype_name(tensor.dtype)));
  }
  if (!tensor.byte_range) return;
  const std::uint64_t range = tensor.byte_range->size();
  if (raw          ? range == bytes
      : per_tensor ? range >= bytes && range - bytes == kScaleAndZeroPoint
                   : fits_per_channel(range, bytes, tensor.shape)) {
    return;
  }
  // What older versions made of a bfloat16 tensor with an odd number of elements: an error only for who reads this
  // entry (plan/read_plan.cc), so that the others can still be.
  if (raw && tensor.dtype == DType::kBFloat16 && range + 2 == bytes) return;
  corrupt("byte_range [" + std::to_string(tensor.byte_range->begin) + ", " + std::to_string(tensor.byte_range->end) +
          ") has " + std::to_string(range) + " bytes, which does not fit shape " + to_text(tensor.shape) +
          " of dtype " + std::string(dtype_name(tensor.dtype)) + " (" + std::to_string(bytes) + " bytes)");
}

/// A piece on its own: its box, and that the stored tensor is the box.
void check_piece(const ShardEntry& piece) {
  const Box& box = piece.box;
  if (box.offsets.size() != box.sizes.size()) {
    corrupt("offsets " + to_text(box.offsets) + " and sizes " + to_text(box.sizes) + " differ in length");
  }
  for (std::size_t d = 0; d < box.sizes.size(); ++d) {
    std::int64_t end = 0;
    if (box.offsets[d] < 0) corrupt("negative offset " + std::to_string(box.offsets[d]));
    if (box.sizes[d] < 0) corrupt("negative size " + std::to_string(box.sizes[d]));
    if (__builtin_add_overflow(box.offsets[d], box.sizes[d], &end)) corrupt("offset plus size overflows");
  }
  if (piece.tensor.shape != box.sizes) {
    corrupt("sizes " + to_text(box.sizes) + " differ from the shape " + to_text(piece.tensor.shape) +
            " of the stored tensor");
  }
  check_tensor(piece.tensor);
}

template <typename Check>
void for_each_piece(const std::vector<ShardEntry>& pieces, std::string_view name, Check check) {
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    try {
      check(pieces[i]);
    } catch (const Error& error) {
      throw error.with_context(std::string(name) + " " + std::to_string(i));
    }
  }
}

void check_same_dtype(DType expected, DType found) {
  if (expected != found) {
    corrupt("dtype is " + std::string(dtype_name(found)) + ", the tensor's is " + std::string(dtype_name(expected)));
  }
}

void check_entry(const TensorEntry& entry) {
  check_tensor(entry);
}

void check_entry(const ChunkedTensorEntry& entry) {
  checked_bytes(entry.dtype, entry.shape);
  for_each_piece(entry.chunks, "chunk", [&entry](const ShardEntry& chunk) {
    check_piece(chunk);
    check_same_dtype(entry.dtype, chunk.tensor.dtype);
    const Box& box = chunk.box;
    bool inside = box.sizes.size() == entry.shape.size();
    for (std::size_t d = 0; inside && d < box.sizes.size(); ++d) {
      inside = box.offsets[d] + box.sizes[d] <= entry.shape[d];
    }
    if (!inside) {
      corrupt("the box of offsets " + to_text(box.offsets) + " and sizes " + to_text(box.sizes) +
              " is not inside the tensor's shape " + to_text(entry.shape));
    }
  });
  switch (check_tiling(entry.shape, entry.chunks)) {
    case Tiling::kExact:
      return;
    case Tiling::kOverlap:
      corrupt("chunks overlap");
    case Tiling::kGap:
      corrupt("chunks do not cover the tensor");
    case Tiling::kTooManyDims:
      throw Error(ErrorCode::kUnsupported,
                  "chunks divide the tensor along more than " + std::to_string(kMaxTiledDims) + " dimensions");
  }
}

void check_entry(const ShardedTensorEntry& entry) {
  for_each_piece(entry.shards, "shard", [&entry](const ShardEntry& shard) {
    check_piece(shard);
    const ShardEntry& first = entry.shards.front();
    check_same_dtype(first.tensor.dtype, shard.tensor.dtype);
    if (shard.box.sizes.size() != first.box.sizes.size()) corrupt("shards differ in their number of dimensions");
  });
  const MeshLayout& layout = entry.layout;
  for (const std::int64_t rank : layout.mesh) {
    if (rank < 0) corrupt("negative rank " + std::to_string(rank) + " in the mesh");
  }
  if (layout.mesh_shape.empty()) return;
  if (!entry.shards.empty() && layout.dim_map.size() != entry.shards.front().box.sizes.size()) {
    corrupt("dim_map has " + std::to_string(layout.dim_map.size()) + " dimensions, the shards have " +
            std::to_string(entry.shards.front().box.sizes.size()));
  }
  const auto mesh_dims = static_cast<std::int64_t>(layout.mesh_shape.size());
  for (const Dims& dims : layout.dim_map) {
    const bool replicated = dims.size() == 1 && dims[0] == -1;
    const bool in_mesh =
        std::all_of(dims.begin(), dims.end(), [mesh_dims](std::int64_t dim) { return dim >= 0 && dim < mesh_dims; });
    if (!replicated && !in_mesh) corrupt("dim_map " + to_text(dims) + " names a dimension that the mesh lacks");
  }
}

void check_entry(const ObjectEntry& entry) {
  check_location(entry.location);
  if (entry.serializer != kTorchSave) {
    throw Error(ErrorCode::kUnsupported, "unknown serializer " + quote_text(entry.serializer) + " of an object");
  }
}

void check_entry(const PrimitiveEntry& entry) {
  check_primitive(entry);
}

void check_entry(const ListEntry&) {}

void check_entry(const DictEntry& entry) {
  std::vector<std::string_view> names;
  names.reserve(entry.keys.size());
  for (const Key& key : entry.keys) names.emplace_back(key.text);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) corrupt("two keys read " + quote_text(*twice));
}

/// Checks the path; gives it without the rank.
std::string_view check_path(std::string_view path, std::int64_t world_size) {
  std::string_view logical;
  std::int64_t rank = 0;
  try {
    std::tie(rank, logical) = split_rank(path);
  } catch (const Error& error) {
    corrupt(error.what());
  }
  if (rank >= world_size) {
    corrupt("rank " + std::to_string(rank) + " is out of range: world_size is " + std::to_string(world_size));
  }
  // A tree of depth kMaxDepth below the key.
  if (std::count(logical.begin(), logical.end(), '/') > kMaxDepth) {
    corrupt("nested more than " + std::to_string(kMaxDepth) + " levels deep");
  }
  return logical;
}

/// The shards of all ranks will be put together: they must be of one tensor.
class ShardedConsistency {
 public:
  void add(std::string_view logical, const ShardedTensorEntry& entry) {
    const ShardedTensorEntry*& first = first_[logical];
    if (first == nullptr || first->shards.empty()) {
      if (first != nullptr) check_kind(*first, entry);
      first = &entry;
      return;
    }
    check_kind(*first, entry);
    if (entry.shards.empty()) return;
    const ShardEntry& ours = first->shards.front();
    const ShardEntry& theirs = entry.shards.front();
    check_same_dtype(ours.tensor.dtype, theirs.tensor.dtype);
    if (ours.box.sizes.size() != theirs.box.sizes.size()) {
      corrupt("the shards have " + std::to_string(theirs.box.sizes.size()) + " dimensions, those of another rank " +
              std::to_string(ours.box.sizes.size()));
    }
  }

 private:
  static void check_kind(const ShardedTensorEntry& a, const ShardedTensorEntry& b) {
    if (a.layout.mesh_shape.empty() != b.layout.mesh_shape.empty()) {
      corrupt("is a DTensor on one rank and a ShardedTensor on another");
    }
  }

  std::unordered_map<std::string_view, const ShardedTensorEntry*> first_;
};

}  // namespace

void validate(const SnapshotMetadata& metadata) {
  if (metadata.world_size < 1 || metadata.world_size > kMaxWorldSize) {
    corrupt("world_size " + std::to_string(metadata.world_size) + " is out of range: 1 to " +
            std::to_string(kMaxWorldSize));
  }
  ShardedConsistency sharded;
  for (const auto& [path, entry] : metadata.manifest) {
    try {
      const std::string_view logical = check_path(path, metadata.world_size);
      std::visit([](const auto& e) { check_entry(e); }, entry);
      if (const auto* e = std::get_if<ShardedTensorEntry>(&entry)) sharded.add(logical, *e);
    } catch (const Error& error) {
      throw error.with_context("entry " + quote_text(path));
    }
  }
}

}  // namespace torchsnapshot
