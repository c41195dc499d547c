// From flattened state to objects with every byte placed, and the manifest that says so. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "state/flatten.h"
#include "torchsnapshot/bytes.h"
#include "torchsnapshot/manifest.h"
#include "torchsnapshot/tensor.h"

namespace torchsnapshot {

struct WritePlanOptions {
  std::string take_id;  ///< unique to this take; part of every location
  std::int64_t rank = 0;
  std::int64_t world_size = 1;
  std::vector<std::string> replicated;  ///< fnmatch globs over leaf paths
  std::uint64_t max_chunk_bytes = 512ULL << 20;
  std::uint64_t max_shard_bytes = 512ULL << 20;
  std::uint64_t slab_bytes = 128ULL << 20;
  bool batching = true;
};

/// Where the bytes of an item come from: the dense elements of a view, or bytes as they are.
using ItemSource = std::variant<TensorView, SharedBytes>;

/// One run of bytes of an object. `path` names it in messages.
struct WriteItem {
  std::string path;
  ItemSource source;
  std::uint64_t offset = 0;  ///< in the object
  std::uint64_t size = 0;
};

/// One object: its items in ascending order of offset, not overlapping. Bytes between items are zero.
struct WriteObject {
  std::string location;
  std::uint64_t size = 0;
  std::vector<WriteItem> items;
};

struct WritePlan {
  std::vector<WriteObject> objects;
  Manifest manifest;  ///< this rank's entries, with "RANK/" in front of the paths
};

/// Plans a take. The same input (addresses included) gives the same plan.
/// - A dense tensor above max_chunk_bytes becomes a ChunkedTensor (chunk_rows), a shard above max_shard_bytes several
///   shards, subdivided along the first dimension that the box does not span whole (else the first).
/// - Leaves and pieces that are the same memory (data, dtype, shape, strides, device) are stored once; so are opaque
///   leaves and encoded tensors with equal bytes and serializer.
/// - Objects are "data/TAKE_ID/RANK-N", N counting from 0. Opaque leaves get an object each; so do bytes that several
///   entries share. Their entries have no byte range: the original Python reader, which collects reads by byte range,
///   would fill only one of two tensors with the same range of one object, and leave the other as it was.
/// - All other tensors and pieces have a byte range. With batching, those below slab_bytes fill slabs in order; a slab
///   is closed when the next item would take it past slab_bytes. Items start at multiples of 64 bytes; one of
///   kCongruentBytes or more on the CPU, contiguous, starts at an offset that equals its address modulo 4096, so that
///   direct I/O can move its interior without a copy.
/// - A tensor without elements is a ChunkedTensor without chunks: nothing is stored, and nothing has to be read (the
///   original reader fails on zero bytes). A shard without elements is left out; if the whole tensor has none, it is
///   kept, for the shape, with the byte range [0, 0) of the first object, which is made if the plan has none.
/// Throws Error(kInvalidArgument) for a limit of 0, for a tensor without memory and for a shard that does not fit its
/// tensor, and Error(kInternal) for what no face should hand over: a view of a quantized tensor, or an encoded
/// tensor of several parts. The message names the leaf.
WritePlan plan_write(const FlatState& state, const WritePlanOptions& options);

inline constexpr std::uint64_t kCongruentBytes = 256ULL << 10;

/// Sizes along dimension 0 of the chunks of a dense tensor, as torch.chunk with ceil(bytes / max_chunk_bytes) chunks
/// makes them: ceil(rows / chunks) rows each, the last one what is left. One chunk when it fits or has no rows; a 0-d
/// tensor counts as one row. max_chunk_bytes must not be 0.
std::vector<std::int64_t> chunk_rows(std::span<const std::int64_t> shape, DType dtype, std::uint64_t max_chunk_bytes);

/// Python's fnmatch.fnmatchcase: '*' (also across '/'), '?', '[seq]', '[!seq]'.
bool glob_match(std::string_view pattern, std::string_view text);

}  // namespace torchsnapshot
