// The ways to compute a CRC-32C, each on its own, for the dispatch and for tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace torchsnapshot::detail {

/// One way. `state` is the CRC's register: the CRC's inverse. When it copies, the CRC is of
/// what arrives in `dst`.
struct Crc32cKernel {
  const char* name;
  /// The register after `size` more bytes.
  std::uint32_t (*update)(std::uint32_t state, const std::byte* data, std::size_t size) noexcept;
  /// As update, and copies.
  std::uint32_t (*copy)(std::uint32_t state, std::byte* dst, const std::byte* src, std::size_t size) noexcept;
  /// The register after `zeros` zero bytes.
  std::uint32_t (*shift)(std::uint32_t state, std::uint64_t zeros) noexcept;
};

/// Crc32cKernel::copy by memcpy of so little at a time that its CRC is taken from the first-level cache.
template <std::uint32_t (*kUpdate)(std::uint32_t, const std::byte*, std::size_t) noexcept>
std::uint32_t copy_in_chunks(std::uint32_t state, std::byte* dst, const std::byte* src, std::size_t size) noexcept {
  constexpr std::size_t max_chunk = 8192;
  while (size != 0) {
    const std::size_t chunk = size < max_chunk ? size : max_chunk;
    std::memcpy(dst, src, chunk);
    state = kUpdate(state, dst, chunk);
    dst += chunk;
    src += chunk;
    size -= chunk;
  }
  return state;
}

/// Those that this processor and its operating system can run, the slowest first; "table" always.
std::span<const Crc32cKernel> crc32c_kernels() noexcept;

extern const Crc32cKernel kTableKernel;  ///< slice-by-8, on every processor

#if defined(__x86_64__)
extern const Crc32cKernel kSse42Kernel;   ///< CRC32 and PCLMULQDQ instructions
extern const Crc32cKernel kAvx512Kernel;  ///< AVX-512 with VPCLMULQDQ
bool have_sse42() noexcept;
bool have_avx512() noexcept;
#elif defined(__aarch64__) && defined(__linux__)
extern const Crc32cKernel kArmv8Kernel;  ///< CRC32 and PMULL instructions
bool have_armv8() noexcept;
#endif

}  // namespace torchsnapshot::detail
