// Plans cut into blocks: what one task moves at once. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "plan/read_plan.h"
#include "plan/write_plan.h"
#include "torchsnapshot/bytes.h"

namespace torchsnapshot {

/// Part of an item that goes into a block: the item's bytes [begin, begin + size) to object offset `offset`.
struct WritePiece {
  const WriteItem* item = nullptr;
  std::uint64_t begin = 0;
  std::uint64_t size = 0;
  std::uint64_t offset = 0;
};

/// One write. Either `direct` (the memory holds the bytes as they are), or `pieces` to be gathered into a buffer that
/// is zero elsewhere.
struct WriteBlock {
  ByteRange range;  ///< in the object
  const std::byte* direct = nullptr;
  std::vector<WritePiece> pieces;
};

/// Cuts an object into blocks of at most `block_bytes` that tile [0, size) without gap or overlap, in order. Memory
/// that is contiguous, on the CPU and at least `direct_bytes` is written from where it lies. The blocks refer to the
/// items.
std::vector<WriteBlock> write_blocks(const WriteObject& object, std::uint64_t block_bytes, std::uint64_t direct_bytes);

/// Bytes of a block that go into one tensor: `range` of the object, which lies within read->range.
struct ReadPiece {
  const TensorRead* read = nullptr;
  ByteRange range;
};

/// One read. Either `direct` (the bytes are read to where they belong), or into a buffer from which the pieces are
/// placed.
struct ReadBlock {
  ByteRange range;  ///< in the object
  std::byte* direct = nullptr;
  std::vector<ReadPiece> pieces;  ///< one for a direct block
};

/// Cuts the reads of an object into blocks of at most `block_bytes`. Reads whose gap is at most `max_gap` bytes share a
/// block; a tensor that takes an unbroken run of at least `direct_bytes` into contiguous CPU memory is read straight
/// into it. The blocks refer to the reads.
std::vector<ReadBlock> read_blocks(const ObjectRead& object, std::uint64_t block_bytes, std::uint64_t direct_bytes,
                                   std::uint64_t max_gap);

}  // namespace torchsnapshot
