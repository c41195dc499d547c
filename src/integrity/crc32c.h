// CRC-32C: the checksum of snapshots, as iSCSI (RFC 3720), S3 and GCS use it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace torchsnapshot {

/// CRC-32C of the bytes whose first part has the CRC `seed` (0: there is no first part) and whose rest is `data`:
/// crc32c(crc32c(0, a), b) is that of a and b in a row, and crc32c(0, "123456789") is 0xE3069283.
/// At the speed of memory where the processor has instructions for it; which ones it has is found out at run time.
/// Thread-safe, like all functions here.
std::uint32_t crc32c(std::uint32_t seed, std::span<const std::byte> data) noexcept;
inline std::uint32_t crc32c(std::uint32_t seed, std::string_view data) noexcept {
  return crc32c(seed, std::as_bytes(std::span(data)));
}

/// Copies `src` to `dst`, which has the same size and does not overlap it, and returns crc32c(seed, src): one pass
/// over the memory. The CRC is of the bytes that arrived in `dst`, also when another thread changes `src` meanwhile.
std::uint32_t copy_crc32c(std::uint32_t seed, std::span<std::byte> dst, std::span<const std::byte> src) noexcept;

/// CRC of a and b in a row, from those of a and of b, which has `len_b` bytes. A few nanoseconds per digit of len_b.
std::uint32_t crc32c_combine(std::uint32_t crc_a, std::uint32_t crc_b, std::uint64_t len_b) noexcept;

/// The linear part of the CRC, for sums over pieces in any order: of `data` followed by nothing, with the register at 0
/// before and no inversion. crc32c_linear(a XOR b) = crc32c_linear(a) XOR crc32c_linear(b), and zeros in front change
/// nothing.
std::uint32_t crc32c_linear(std::span<const std::byte> data) noexcept;
/// As crc32c_linear, and copies as copy_crc32c does.
std::uint32_t copy_crc32c_linear(std::span<std::byte> dst, std::span<const std::byte> src) noexcept;
/// The linear CRC of bytes that `zeros` zero bytes follow, from that of the bytes alone.
std::uint32_t crc32c_shift(std::uint32_t linear, std::uint64_t zeros) noexcept;
/// The CRC of `size` bytes from their linear CRC.
std::uint32_t crc32c_of_linear(std::uint32_t linear, std::uint64_t size) noexcept;

/// Name of the kernel in use ("avx512", "sse42", "armv8", "table"), for messages and benchmarks.
const char* crc32c_kernel_name() noexcept;

}  // namespace torchsnapshot
