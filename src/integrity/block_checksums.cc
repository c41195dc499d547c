#include "integrity/block_checksums.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "integrity/crc32c.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

std::string range_text(ByteRange range) {
  return "[" + std::to_string(range.begin) + ", " + std::to_string(range.end) + ")";
}

std::string hex(std::uint32_t value) {
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "0x%08x", value);
  return text.data();
}

ByteRange range_of_block(std::uint64_t block, std::uint64_t block_bytes, std::uint64_t object_bytes) noexcept {
  const std::uint64_t begin = block * block_bytes;
  return {begin, begin + std::min(block_bytes, object_bytes - begin)};
}

void check_same_size(std::span<std::byte> dst, std::span<const std::byte> data) {
  if (dst.size() == data.size()) return;
  throw Error(ErrorCode::kInternal, "checksums: " + std::to_string(data.size()) +
                                        " bytes are to be copied to a buffer of " + std::to_string(dst.size()));
}

}  // namespace

ByteRange ChecksumTable::block_range(std::uint64_t block) const noexcept {
  return range_of_block(block, block_bytes, object_bytes);
}

std::string to_string(const BlockMismatch& mismatch) {
  return "bytes " + range_text(mismatch.range) + " have the CRC-32C " + hex(mismatch.found) + ", expected " +
         hex(mismatch.expected);
}

ByteRange covering_blocks(const ChecksumTable& table, ByteRange range) noexcept {
  if (range.begin >= range.end) return range;
  return {table.block_range(range.begin / table.block_bytes).begin,
          table.block_range((range.end - 1) / table.block_bytes).end};
}

std::vector<BlockMismatch> find_mismatches(const ChecksumTable& table, std::uint64_t offset,
                                           std::span<const std::byte> data) {
  std::vector<BlockMismatch> mismatches;
  const std::uint64_t first = checksum_block_count(offset, table.block_bytes);
  for (std::uint64_t block = first; block < table.checksums.size(); ++block) {
    const ByteRange range = table.block_range(block);
    if (range.end - offset > data.size()) break;
    const std::uint32_t found = crc32c(0, data.subspan(range.begin - offset, range.size()));
    if (found != table.checksums[block]) mismatches.push_back({range, table.checksums[block], found});
  }
  return mismatches;
}

namespace detail {

BlockSums::BlockSums(std::uint64_t object_bytes, std::uint64_t block_bytes)
    : object_bytes_(object_bytes), block_bytes_(block_bytes), count_(0) {
  if (!is_checksum_block_size(block_bytes)) {
    throw Error(ErrorCode::kInvalidArgument,
                "a checksum block can't have " + std::to_string(block_bytes) + " bytes: use a power of two from " +
                    std::to_string(kMinChecksumBlockBytes) + " to " + std::to_string(kMaxChecksumBlockBytes));
  }
  count_ = checksum_block_count(object_bytes, block_bytes);
  blocks_ = std::make_unique<Block[]>(count_);
  for (std::uint64_t block = 0; block < count_; ++block) {
    blocks_[block].missing.store(static_cast<std::uint32_t>(block_range(block).size()), std::memory_order_relaxed);
  }
}

ByteRange BlockSums::block_range(std::uint64_t block) const noexcept {
  return range_of_block(block, block_bytes_, object_bytes_);
}

bool BlockSums::add(std::uint64_t block, ByteRange piece, std::uint32_t linear) {
  Block& sums = blocks_[block];
  const auto size = static_cast<std::uint32_t>(piece.size());
  // Whoever takes the last bytes off sees the sums of all others: each adds its sum first, and the counter orders them.
  sums.sum.fetch_xor(crc32c_shift(linear, block_range(block).end - piece.end), std::memory_order_relaxed);
  const std::uint32_t missing = sums.missing.fetch_sub(size, std::memory_order_acq_rel);
  if (missing < size) {
    throw Error(ErrorCode::kInternal, "checksums: bytes " + range_text(piece) + " arrive when only " +
                                          std::to_string(missing) + " bytes of their block are missing");
  }
  return missing == size;
}

bool BlockSums::is_complete(std::uint64_t block) const noexcept {
  return blocks_[block].missing.load(std::memory_order_acquire) == 0;
}

std::uint32_t BlockSums::checksum(std::uint64_t block) const noexcept {
  return crc32c_of_linear(blocks_[block].sum.load(std::memory_order_relaxed), block_range(block).size());
}

void BlockSums::check_within(std::uint64_t offset, std::uint64_t size) const {
  if (offset <= object_bytes_ && size <= object_bytes_ - offset) return;
  throw Error(ErrorCode::kInternal, "checksums: " + std::to_string(size) + " bytes at " + std::to_string(offset) +
                                        " don't lie within an object of " + std::to_string(object_bytes_));
}

void BlockSums::add_zeros(std::uint64_t offset, std::uint64_t size) {
  check_within(offset, size);
  const std::uint64_t end = offset + size;
  while (offset < end) {
    const std::uint64_t block = offset / block_bytes_;
    const std::uint64_t next = std::min(end, block_range(block).end);
    add(block, {offset, next}, 0);
    offset = next;
  }
}

template <class Complete>
std::uint32_t BlockSums::add_bytes(std::uint64_t offset, std::span<const std::byte> data, std::byte* copy_to,
                                   const Complete& complete) {
  check_within(offset, data.size());
  const std::uint64_t size = data.size();
  std::uint32_t whole = 0;
  while (!data.empty()) {
    const std::uint64_t block = offset / block_bytes_;
    const auto here = data.first(std::min<std::uint64_t>(data.size(), block_range(block).end - offset));
    std::uint32_t linear = 0;
    if (copy_to == nullptr) {
      linear = crc32c_linear(here);
    } else {
      linear = copy_crc32c_linear({copy_to, here.size()}, here);
      copy_to += here.size();
    }
    if (add(block, {offset, offset + here.size()}, linear)) complete(block);
    whole = crc32c_shift(whole, here.size()) ^ linear;
    offset += here.size();
    data = data.subspan(here.size());
  }
  return crc32c_of_linear(whole, size);
}

}  // namespace detail

std::uint32_t ChecksumBuilder::add(std::uint64_t offset, std::span<const std::byte> data) {
  return sums_.add_bytes(offset, data, nullptr, [](std::uint64_t) {});
}

void ChecksumBuilder::add_copy(std::uint64_t offset, std::span<std::byte> dst, std::span<const std::byte> data) {
  check_same_size(dst, data);
  sums_.add_bytes(offset, data, dst.data(), [](std::uint64_t) {});
}

void ChecksumBuilder::add_zeros(std::uint64_t offset, std::uint64_t size) {
  sums_.add_zeros(offset, size);
}

ChecksumTable ChecksumBuilder::finish() const {
  ChecksumTable table{sums_.object_bytes(), sums_.block_bytes(), {}};
  table.checksums.reserve(sums_.block_count());
  for (std::uint64_t block = 0; block < sums_.block_count(); ++block) {
    if (!sums_.is_complete(block)) {
      throw Error(ErrorCode::kInternal,
                  "checksums: not all of the bytes " + range_text(sums_.block_range(block)) + " have arrived");
    }
    table.checksums.push_back(sums_.checksum(block));
  }
  return table;
}

ChecksumVerifier::ChecksumVerifier(const ChecksumTable& table)
    : table_(table), sums_(table.object_bytes, table.block_bytes) {
  if (table.checksums.size() != sums_.block_count()) {
    throw Error(ErrorCode::kInternal, "checksums: a table of " + std::to_string(table.checksums.size()) +
                                          " checksums for " + std::to_string(sums_.block_count()) + " blocks");
  }
}

std::vector<BlockMismatch> ChecksumVerifier::add_bytes(std::uint64_t offset, std::span<const std::byte> data,
                                                       std::byte* copy_to) {
  std::vector<BlockMismatch> mismatches;
  sums_.add_bytes(offset, data, copy_to, [&](std::uint64_t block) {
    const std::uint32_t found = sums_.checksum(block);
    if (found != table_.checksums[block]) {
      mismatches.push_back({sums_.block_range(block), table_.checksums[block], found});
    }
  });
  return mismatches;
}

std::vector<BlockMismatch> ChecksumVerifier::add(std::uint64_t offset, std::span<const std::byte> data) {
  return add_bytes(offset, data, nullptr);
}

std::vector<BlockMismatch> ChecksumVerifier::add_copy(std::uint64_t offset, std::span<std::byte> dst,
                                                      std::span<const std::byte> data) {
  check_same_size(dst, data);
  return add_bytes(offset, data, dst.data());
}

bool ChecksumVerifier::is_verified(ByteRange range) const noexcept {
  if (range.begin >= range.end) return true;
  if (range.end > sums_.object_bytes()) return false;
  const std::uint64_t last = (range.end - 1) / sums_.block_bytes();
  for (std::uint64_t block = range.begin / sums_.block_bytes(); block <= last; ++block) {
    if (!sums_.is_complete(block) || sums_.checksum(block) != table_.checksums[block]) return false;
  }
  return true;
}

}  // namespace torchsnapshot
