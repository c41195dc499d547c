// CRC-32C by the instruction that x86-64 (SSE4.2) and 64-bit Arm have for it, on three streams at once that a
// carry-less multiplication joins (Gopal et al., "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction",
// Intel white paper 323405).
#if defined(__x86_64__) || (defined(__aarch64__) && defined(__linux__))

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_acle.h>
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

#include "integrity/crc32c_cursor.h"
#include "integrity/crc32c_kernels.h"
#include "integrity/crc32c_polynomial.h"

#if defined(__x86_64__)
#define TORCHSNAPSHOT_CRC __attribute__((target("sse4.2,pclmul")))
#elif defined(__clang__)
#define TORCHSNAPSHOT_CRC __attribute__((target("crc,crypto")))
#else
#define TORCHSNAPSHOT_CRC __attribute__((target("+crc+crypto")))
#endif

namespace torchsnapshot::detail {
namespace {

#if defined(__x86_64__)

TORCHSNAPSHOT_CRC inline std::uint32_t crc_word(std::uint32_t state, std::uint64_t word) noexcept {
  return static_cast<std::uint32_t>(_mm_crc32_u64(state, word));
}

TORCHSNAPSHOT_CRC inline std::uint32_t crc_byte(std::uint32_t state, std::byte value) noexcept {
  return _mm_crc32_u8(state, std::to_integer<std::uint8_t>(value));
}

/// The 64-bit carry-less product of two 32-bit words.
TORCHSNAPSHOT_CRC inline std::uint64_t carryless(std::uint32_t a, std::uint32_t b) noexcept {
  const __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128(static_cast<long long>(a)),
                                               _mm_cvtsi64_si128(static_cast<long long>(b)), 0);
  return static_cast<std::uint64_t>(_mm_cvtsi128_si64(product));
}

#else

TORCHSNAPSHOT_CRC inline std::uint32_t crc_word(std::uint32_t state, std::uint64_t word) noexcept {
  return __crc32cd(state, word);
}

TORCHSNAPSHOT_CRC inline std::uint32_t crc_byte(std::uint32_t state, std::byte value) noexcept {
  return __crc32cb(state, std::to_integer<std::uint8_t>(value));
}

/// The 64-bit carry-less product of two 32-bit words.
TORCHSNAPSHOT_CRC inline std::uint64_t carryless(std::uint32_t a, std::uint32_t b) noexcept {
  return vgetq_lane_u64(vreinterpretq_u64_p128(vmull_p64(static_cast<poly64_t>(a), static_cast<poly64_t>(b))), 0);
}

#endif

/// Three neighbouring lanes of kLane bytes at a time: the instruction takes three cycles, and one can start in each.
/// The lanes' registers a, b and c are joined as a · x^(16 kLane) + b · x^(8 kLane) + c (as for kShiftCarryless).
template <bool kCopy, std::size_t kLane>
TORCHSNAPSHOT_CRC inline std::uint32_t three_lanes(std::uint32_t state, Cursor<kCopy>& cursor) noexcept {
  static_assert(kLane % 8 == 0 && kLane > 0);
  constexpr std::uint32_t one_lane = power_of_x(8 * static_cast<std::int64_t>(kLane) - 33);
  constexpr std::uint32_t two_lanes = power_of_x(16 * static_cast<std::int64_t>(kLane) - 33);
  while (cursor.left >= 3 * kLane) {
    std::uint32_t a = state;
    std::uint32_t b = 0;
    std::uint32_t c = 0;
    for (std::size_t i = 0; i < kLane; i += 8) {
      a = crc_word(a, cursor.word(i));
      b = crc_word(b, cursor.word(kLane + i));
      c = crc_word(c, cursor.word(2 * kLane + i));
    }
    state = crc_word(0, carryless(a, two_lanes) ^ carryless(b, one_lane)) ^ c;
    cursor.skip(3 * kLane);
  }
  return state;
}

template <bool kCopy>
TORCHSNAPSHOT_CRC inline std::uint32_t one_stream(std::uint32_t state, Cursor<kCopy> cursor) noexcept {
  for (; cursor.left >= 8; cursor.skip(8)) state = crc_word(state, cursor.word(0));
  for (; cursor.left != 0; cursor.skip(1)) {
    const std::byte value = *cursor.src;
    if constexpr (kCopy) *cursor.dst = value;
    state = crc_byte(state, value);
  }
  return state;
}

template <bool kCopy>
TORCHSNAPSHOT_CRC std::uint32_t run(std::uint32_t state, Cursor<kCopy> cursor) noexcept {
  // No lane is a multiple of the page: loads and stores at the same offset in a page hinder each other.
  state = three_lanes<kCopy, 1344>(state, cursor);
  state = three_lanes<kCopy, 192>(state, cursor);
  state = three_lanes<kCopy, 32>(state, cursor);
  return one_stream<kCopy>(state, cursor);
}

TORCHSNAPSHOT_CRC std::uint32_t update(std::uint32_t state, const std::byte* data, std::size_t size) noexcept {
  return run<false>(state, {data, nullptr, size});
}

TORCHSNAPSHOT_CRC std::uint32_t copy(std::uint32_t state, std::byte* dst, const std::byte* src,
                                     std::size_t size) noexcept {
  return run<true>(state, {src, dst, size});
}

TORCHSNAPSHOT_CRC std::uint32_t shift(std::uint32_t state, std::uint64_t zeros) noexcept {
  for (std::size_t k = 0; zeros != 0; ++k, zeros >>= 4) {
    if ((zeros & 15) != 0) state = crc_word(0, carryless(state, kShiftCarryless[k][zeros & 15]));
  }
  return state;
}

}  // namespace

#if defined(__x86_64__)

constexpr Crc32cKernel kSse42Kernel{"sse42", update, copy, shift};

bool have_sse42() noexcept {
  __builtin_cpu_init();
  return __builtin_cpu_supports("sse4.2") != 0 && __builtin_cpu_supports("pclmul") != 0;
}

#else

constexpr Crc32cKernel kArmv8Kernel{"armv8", update, copy, shift};

bool have_armv8() noexcept {
  constexpr unsigned long pmull = 1UL << 4;  // HWCAP_PMULL
  constexpr unsigned long crc32 = 1UL << 7;  // HWCAP_CRC32
  return (getauxval(AT_HWCAP) & (pmull | crc32)) == (pmull | crc32);
}

#endif

}  // namespace torchsnapshot::detail

#endif
