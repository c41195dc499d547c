// Plans cut into blocks: what one task moves at once. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "plan/read_plan.h"
#include "plan/write_plan.h"
#include "torchsnapshot/bytes.h"

namespace torchsnapshot {

/// Every block begins at a multiple of this in its object, and ends at one or where the object ends; so does, in
/// memory, a direct block whose address allows it. Enough for direct I/O everywhere (devices ask for 512 to 4096
/// bytes).
inline constexpr std::uint64_t kBlockAlignment = 4096;

/// Sizes of blocks, in bytes. Both block sizes are multiples of kBlockAlignment.
struct BlockSizes {
  std::uint64_t direct = 16ULL << 20;  ///< the most that is moved at once between memory and storage without a buffer
  std::uint64_t staged = 4ULL << 20;   ///< the most that passes through one buffer
  std::uint64_t min_direct = 1ULL << 20;  ///< less is not worth a block of its own
};

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

/// Cuts an object into blocks that tile [0, size) without gap or overlap, in order, and don't cross a multiple of
/// sizes.direct (a staged one: of sizes.staged). Memory that is contiguous, on the CPU and congruent to its offset
/// modulo kBlockAlignment is written from where it lies, but for the part of a page at either end, if that leaves at
/// least sizes.min_direct; `direct_allowed` false: nothing is. The blocks refer to the items.
std::vector<WriteBlock> write_blocks(const WriteObject& object, const BlockSizes& sizes, bool direct_allowed = true);

/// As write_blocks, for memory that may be looked at later: the pages of an item for which `may_wait` says true, at
/// least sizes.min_direct, become direct blocks of at most sizes.staged, cut where addresses (not offsets) are
/// multiples of it: huge pages that such a block covers are left whole.
std::vector<WriteBlock> lazy_write_blocks(const WriteObject& object, const BlockSizes& sizes,
                                          const std::function<bool(const WriteItem& item)>& may_wait);

/// The memory that takes the read's bytes as they are, or null.
std::byte* plain_target(const TensorRead& read);

/// Bytes of a block that go into one tensor: `range` of the object, which lies within read->range.
struct ReadPiece {
  const TensorRead* read = nullptr;
  ByteRange range;
};

/// One read. Either `direct` (the bytes are read to where they belong), or into a buffer from which the pieces are
/// placed. A block without pieces is read for its checksum only.
struct ReadBlock {
  ByteRange range;  ///< in the object
  std::byte* direct = nullptr;
  std::vector<ReadPiece> pieces;  ///< one for a direct block
};

/// Cuts the reads of an object of `object_bytes` bytes into blocks that don't overlap and don't cross a multiple of
/// sizes.direct (a staged one: of sizes.staged). They cover every byte of the reads, and with `checksum_bytes` (not 0)
/// whole checksum blocks of that size. Gaps of at most `max_gap` bytes are read along. Contiguous CPU memory that takes
/// an unbroken run of at least sizes.min_direct bytes which no other read wants is read into directly. The blocks refer
/// to the reads. Direct blocks begin and end at multiples of kBlockAlignment, if memory and offset are congruent modulo
/// it; if they are not, at the ends of the tensor too.
std::vector<ReadBlock> read_blocks(const ObjectRead& object, std::uint64_t object_bytes, std::uint64_t checksum_bytes,
                                   std::uint64_t max_gap, const BlockSizes& sizes);

}  // namespace torchsnapshot
