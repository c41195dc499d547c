// CRC-32C by folding with VPCLMULQDQ, 256 bytes a step (Gopal et al., "Fast CRC Computation for Generic Polynomials
// Using PCLMULQDQ Instruction", Intel white paper 323102).
#if defined(__x86_64__)

#include <immintrin.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "integrity/crc32c_kernels.h"
#include "integrity/crc32c_polynomial.h"

#define TORCHSNAPSHOT_AVX512 __attribute__((target("avx512f,vpclmulqdq")))

namespace torchsnapshot::detail {
namespace {

enum class Copy : std::uint8_t {
  kNone,
  kCached,
  kStream,  ///< past the caches: stores of whole words go to memory without reading what is there before
};

/// A read position, and for a copy a write position.
template <Copy kCopy>
struct Cursor {
  const std::byte* src;
  std::byte* dst;
  std::size_t left;

  void skip(std::size_t size) noexcept {
    src += size;
    if constexpr (kCopy != Copy::kNone) dst += size;
    left -= size;
  }
};

// Folding. A 128-bit lane holds a polynomial of degree < 128, bit i being the coefficient of x^(127 - i): its low word
// A stands for A · x^64, its high word B for B. To move it D bits ahead of other bytes is to multiply it by x^D, and A
// · (x^(64 + D) mod P) + B · (x^D mod P) is congruent to that and fits in 128 bits again. A product of two reflected
// 64-bit words is one bit short, so that the constants' exponents are one less; a constant is reflected in 64 bits.
constexpr long long fold_low(std::int64_t bits) noexcept {
  return static_cast<long long>(std::uint64_t{power_of_x(bits + 63)} << 32);
}
constexpr long long fold_high(std::int64_t bits) noexcept {
  return static_cast<long long>(std::uint64_t{power_of_x(bits - 1)} << 32);
}

/// Copies from this size on go past the caches: such data is on its way to the disk or to a tensor that is used later.
/// Up to half as fast again as stores that first read the line that they overwrite, when `dst` is not in a cache.
constexpr std::size_t kStreamBytes = 256 << 10;

/// Moves each lane of `lanes` ahead by what `constants` say, and adds `next`.
TORCHSNAPSHOT_AVX512 inline __m512i fold(__m512i lanes, __m512i constants, __m512i next) noexcept {
  const __m512i low = _mm512_clmulepi64_epi128(lanes, constants, 0x00);
  const __m512i high = _mm512_clmulepi64_epi128(lanes, constants, 0x11);
  return _mm512_ternarylogic_epi64(low, high, next, 0x96);  // 0x96: XOR of three
}

TORCHSNAPSHOT_AVX512 inline __m512i fold_constants(long long low, long long high) noexcept {
  return _mm512_set_epi64(high, low, high, low, high, low, high, low);
}

/// Fewer bytes than a fold takes.
template <Copy kCopy>
std::uint32_t finish(std::uint32_t state, const Cursor<kCopy>& cursor) noexcept {
  if constexpr (kCopy != Copy::kNone) {
    return kSse42Kernel.copy(state, cursor.dst, cursor.src, cursor.left);
  } else {
    return kSse42Kernel.update(state, cursor.src, cursor.left);
  }
}

template <Copy kCopy>
TORCHSNAPSHOT_AVX512 inline __m512i load(const Cursor<kCopy>& cursor, std::size_t offset) noexcept {
  const __m512i value = _mm512_loadu_si512(cursor.src + offset);
  if constexpr (kCopy == Copy::kCached) _mm512_storeu_si512(cursor.dst + offset, value);
  if constexpr (kCopy == Copy::kStream) _mm512_stream_si512(reinterpret_cast<__m512i*>(cursor.dst + offset), value);
  return value;
}

template <Copy kCopy>
TORCHSNAPSHOT_AVX512 std::uint32_t run_avx512(std::uint32_t state, Cursor<kCopy> cursor) noexcept {
  if (cursor.left < 256) return finish(state, cursor);
  // The register belongs to the first 32 bits of what follows.
  __m512i z0 =
      _mm512_xor_si512(load(cursor, 0), _mm512_zextsi128_si512(_mm_cvtsi64_si128(static_cast<long long>(state))));
  __m512i z1 = load(cursor, 64);
  __m512i z2 = load(cursor, 128);
  __m512i z3 = load(cursor, 192);
  cursor.skip(256);
  const __m512i by_2048 = fold_constants(fold_low(2048), fold_high(2048));
  for (; cursor.left >= 256; cursor.skip(256)) {
    z0 = fold(z0, by_2048, load(cursor, 0));
    z1 = fold(z1, by_2048, load(cursor, 64));
    z2 = fold(z2, by_2048, load(cursor, 128));
    z3 = fold(z3, by_2048, load(cursor, 192));
  }
  const __m512i by_512 = fold_constants(fold_low(512), fold_high(512));
  __m512i z = fold(fold(fold(z0, by_512, z1), by_512, z2), by_512, z3);
  for (; cursor.left >= 64; cursor.skip(64)) z = fold(z, by_512, load(cursor, 0));
  // What is folded stands for all bytes before it, the first register included.
  alignas(64) std::array<std::byte, 64> folded;
  _mm512_store_si512(folded.data(), z);
  return finish(kSse42Kernel.update(0, folded.data(), folded.size()), cursor);
}

TORCHSNAPSHOT_AVX512 std::uint32_t update(std::uint32_t state, const std::byte* data, std::size_t size) noexcept {
  return run_avx512<Copy::kNone>(state, {data, nullptr, size});
}

TORCHSNAPSHOT_AVX512 std::uint32_t copy(std::uint32_t state, std::byte* dst, const std::byte* src,
                                        std::size_t size) noexcept {
  if (size < kStreamBytes) return run_avx512<Copy::kCached>(state, {src, dst, size});
  const std::size_t head = (64 - reinterpret_cast<std::uintptr_t>(dst) % 64) % 64;
  state = kSse42Kernel.copy(state, dst, src, head);
  state = run_avx512<Copy::kStream>(state, {src + head, dst + head, size - head});
  _mm_sfence();  // streamed stores are not ordered with later ones
  return state;
}

std::uint32_t shift(std::uint32_t state, std::uint64_t zeros) noexcept {
  return kSse42Kernel.shift(state, zeros);
}

}  // namespace

constexpr Crc32cKernel kAvx512Kernel{"avx512", update, copy, shift};

bool have_avx512() noexcept {
  return have_sse42() && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("vpclmulqdq") != 0;
}

}  // namespace torchsnapshot::detail

#endif
