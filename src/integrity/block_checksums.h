// Checksums of an object's blocks: made while its bytes arrive in any order, and checked likewise.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "torchsnapshot/bytes.h"

namespace torchsnapshot {

inline constexpr std::uint64_t kChecksumBlockBytes = 1ULL << 20;     ///< the default
inline constexpr std::uint64_t kMinChecksumBlockBytes = 1ULL << 9;   ///< a power of two, as every block size
inline constexpr std::uint64_t kMaxChecksumBlockBytes = 1ULL << 30;  ///< a power of two, as every block size

/// The checksums of an object. Block i is the bytes [i · block_bytes, (i + 1) · block_bytes), or as many of them as the
/// object has; an empty object has no block.
struct ChecksumTable {
  std::uint64_t object_bytes = 0;
  std::uint64_t block_bytes = kChecksumBlockBytes;
  std::vector<std::uint32_t> checksums;  ///< the CRC-32C of each block

  /// Bytes of a block; `block` < checksums.size().
  [[nodiscard]] ByteRange block_range(std::uint64_t block) const noexcept;
  friend bool operator==(const ChecksumTable&, const ChecksumTable&) = default;
};

/// Number of blocks of an object.
constexpr std::uint64_t checksum_block_count(std::uint64_t object_bytes, std::uint64_t block_bytes) noexcept {
  return object_bytes / block_bytes + (object_bytes % block_bytes != 0 ? 1 : 0);
}
/// A power of two between the least and the greatest size.
constexpr bool is_checksum_block_size(std::uint64_t block_bytes) noexcept {
  return block_bytes >= kMinChecksumBlockBytes && block_bytes <= kMaxChecksumBlockBytes &&
         (block_bytes & (block_bytes - 1)) == 0;
}

/// A block whose bytes are not those that were written.
struct BlockMismatch {
  ByteRange range;  ///< in the object
  std::uint32_t expected = 0;
  std::uint32_t found = 0;
  friend bool operator==(const BlockMismatch&, const BlockMismatch&) = default;
};
/// "bytes [0, 1048576) have the CRC-32C 0x00000001, expected 0x00000002", for a message that names entry and object.
std::string to_string(const BlockMismatch& mismatch);

/// `range`, which lies within the object, extended to whole blocks: what has to be read to check it. Empty ranges stay.
ByteRange covering_blocks(const ChecksumTable& table, ByteRange range) noexcept;

/// Checks each block that lies wholly within `data`, the object's bytes from `offset` on; the parts of blocks at its
/// ends are not looked at. Returns the mismatches in order.
std::vector<BlockMismatch> find_mismatches(const ChecksumTable& table, std::uint64_t offset,
                                           std::span<const std::byte> data);

namespace detail {

/// The sums of blocks whose bytes arrive in pieces. A CRC is linear: each piece adds to its block's sum what it would
/// be if all other bytes were zero. Thread-safe without locks.
class BlockSums {
 public:
  /// Throws Error(kInvalidArgument) for a block size that is not allowed.
  BlockSums(std::uint64_t object_bytes, std::uint64_t block_bytes);

  [[nodiscard]] std::uint64_t object_bytes() const noexcept { return object_bytes_; }
  [[nodiscard]] std::uint64_t block_bytes() const noexcept { return block_bytes_; }
  [[nodiscard]] std::uint64_t block_count() const noexcept { return count_; }
  [[nodiscard]] ByteRange block_range(std::uint64_t block) const noexcept;

  /// Adds a piece of one block, whose CRC's linear part is given; true when it is the block's last one.
  /// Throws Error(kInternal) when the block has more bytes now than it should.
  bool add(std::uint64_t block, ByteRange piece, std::uint32_t linear);
  [[nodiscard]] bool is_complete(std::uint64_t block) const noexcept;
  /// The CRC of a complete block.
  [[nodiscard]] std::uint32_t checksum(std::uint64_t block) const noexcept;

  /// Adds bytes of any number of blocks. They are copied to `copy_to` unless it is null. `complete(block)` is called
  /// for each block that they complete. Returns the CRC of `data`. Throws Error(kInternal) when they don't lie within
  /// the object.
  template <class Complete>
  std::uint32_t add_bytes(std::uint64_t offset, std::span<const std::byte> data, std::byte* copy_to,
                          const Complete& complete);
  /// As add_bytes, for `size` zeros: the linear part of their CRC is 0.
  void add_zeros(std::uint64_t offset, std::uint64_t size);

 private:
  void check_within(std::uint64_t offset, std::uint64_t size) const;

  struct Block {
    std::atomic<std::uint32_t> sum;
    std::atomic<std::uint32_t> missing;  ///< bytes that have not arrived
  };
  std::uint64_t object_bytes_;
  std::uint64_t block_bytes_;
  std::uint64_t count_;
  std::unique_ptr<Block[]> blocks_;
};

}  // namespace detail

/// Makes the table of an object while it is written. Each byte is handed over exactly once, in pieces of any size and
/// order. add and add_copy are thread-safe; finish comes after them.
class ChecksumBuilder {
 public:
  /// Throws Error(kInvalidArgument) unless is_checksum_block_size.
  explicit ChecksumBuilder(std::uint64_t object_bytes, std::uint64_t block_bytes = kChecksumBlockBytes)
      : sums_(object_bytes, block_bytes) {}

  /// The object's bytes from `offset` on. Returns their CRC. Throws Error(kInternal) when they don't lie within it, or
  /// when a block gets more bytes than it has.
  std::uint32_t add(std::uint64_t offset, std::span<const std::byte> data);
  /// As add, and copies them to `dst`, of the same size, in the same pass. What is summed is what arrives in `dst`.
  void add_copy(std::uint64_t offset, std::span<std::byte> dst, std::span<const std::byte> data);
  /// As add, for `size` bytes that are zero.
  void add_zeros(std::uint64_t offset, std::uint64_t size);

  /// The table. Throws Error(kInternal) when bytes are missing, naming the first block.
  [[nodiscard]] ChecksumTable finish() const;

 private:
  detail::BlockSums sums_;
};

/// Checks an object's blocks while they are read. Bytes may be handed over in pieces of any size and order, each at
/// most once; blocks of which nothing is needed may stay away. Thread-safe.
class ChecksumVerifier {
 public:
  /// `table` outlives this.
  explicit ChecksumVerifier(const ChecksumTable& table);

  /// The object's bytes from `offset` on. Returns those blocks that are complete with them and wrong: each wrong block
  /// is returned by exactly one call. Throws Error(kInternal) as ChecksumBuilder::add does.
  [[nodiscard]] std::vector<BlockMismatch> add(std::uint64_t offset, std::span<const std::byte> data);
  /// As add, and copies them to `dst`, of the same size, in the same pass. What is summed is what arrives in `dst`.
  [[nodiscard]] std::vector<BlockMismatch> add_copy(std::uint64_t offset, std::span<std::byte> dst,
                                                    std::span<const std::byte> data);

  /// Whether every block that `range` touches has arrived and is right.
  [[nodiscard]] bool is_verified(ByteRange range) const noexcept;

 private:
  std::vector<BlockMismatch> add_bytes(std::uint64_t offset, std::span<const std::byte> data, std::byte* copy_to);

  const ChecksumTable& table_;
  detail::BlockSums sums_;
};

}  // namespace torchsnapshot
