// How a block is cut for direct I/O. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace torchsnapshot {

/// What direct I/O asks of a transfer. Powers of two.
struct DirectAlign {
  std::size_t memory = 4096;  ///< addresses are multiples of this
  /// Offsets and sizes are multiples of this: of what the device asks, and of the page size, so that no page is ever
  /// written both directly and through the page cache.
  std::size_t offset = 4096;
};

/// The largest transfers; multiples of DirectAlign::offset.
struct PieceLimits {
  std::size_t straight = 4 << 20;
  std::size_t bounced = 1 << 20;
};

/// One transfer between a file and the memory of a block.
struct Piece {
  enum class Way : std::uint8_t {
    kBuffered,  ///< through the page cache
    kStraight,  ///< directly from or to the block's memory
    kBounced,   ///< directly from or to an aligned buffer, and copied
  };
  Way way = Way::kBuffered;
  std::uint64_t offset = 0;  ///< in the file, of the transfer
  std::size_t size = 0;      ///< of the transfer; may go past the end of a file that is read
  std::size_t skip = 0;      ///< bytes of the transfer ahead of those that belong to the block
  std::size_t at = 0;        ///< where those lie in the block
  std::size_t useful = 0;    ///< and how many they are

  friend bool operator==(const Piece&, const Piece&) = default;
};

/// Cuts the block of `size` bytes that lies at `address` in memory and at `offset` in the file. The whole pages go
/// directly, if there are any; the partial ones at the ends, which another block may share, through the page cache,
/// where the kernel merges them.
std::vector<Piece> cut_write(std::uint64_t offset, std::uint64_t address, std::size_t size, DirectAlign align,
                             PieceLimits limits);

/// As cut_write. All of it is read directly: partial pages at the ends as whole ones into a buffer.
std::vector<Piece> cut_read(std::uint64_t offset, std::uint64_t address, std::size_t size, DirectAlign align,
                            PieceLimits limits);

}  // namespace torchsnapshot
