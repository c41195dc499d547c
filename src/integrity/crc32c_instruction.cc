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

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "integrity/crc32c_kernels.h"
#include "integrity/crc32c_polynomial.h"

#if defined(__x86_64__)
#define TORCHSNAPSHOT_CRC __attribute__((target("sse4.2,pclmul")))
#elif defined(__clang__)
#define TORCHSNAPSHOT_CRC __attribute__((target("crc,crypto")))
// Its <arm_acle.h> has them only when the whole file is compiled for a processor with CRC instructions.
#define TORCHSNAPSHOT_CRC_WORD __builtin_arm_crc32cd
#define TORCHSNAPSHOT_CRC_BYTE __builtin_arm_crc32cb
#else
#define TORCHSNAPSHOT_CRC __attribute__((target("+crc+crypto")))
#define TORCHSNAPSHOT_CRC_WORD __crc32cd
#define TORCHSNAPSHOT_CRC_BYTE __crc32cb
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
  return TORCHSNAPSHOT_CRC_WORD(state, word);
}

TORCHSNAPSHOT_CRC inline std::uint32_t crc_byte(std::uint32_t state, std::byte value) noexcept {
  return TORCHSNAPSHOT_CRC_BYTE(state, std::to_integer<std::uint8_t>(value));
}

/// The 64-bit carry-less product of two 32-bit words.
TORCHSNAPSHOT_CRC inline std::uint64_t carryless(std::uint32_t a, std::uint32_t b) noexcept {
  return vgetq_lane_u64(vreinterpretq_u64_p128(vmull_p64(static_cast<poly64_t>(a), static_cast<poly64_t>(b))), 0);
}

#endif

inline std::uint64_t load(const std::byte* p) noexcept {
  std::uint64_t word = 0;
  std::memcpy(&word, p, sizeof word);  // both processors are little-endian, as the register is
  return word;
}

/// Three neighbouring lanes of kLane bytes at a time, as long as there are so many: the instruction takes about three
/// cycles, and one can start in each. The lanes' registers a, b and c are joined as
/// a · x^(16 kLane) + b · x^(8 kLane) + c (with the constants as for kShiftCarryless).
template <std::size_t kLane>
TORCHSNAPSHOT_CRC inline std::uint32_t three_lanes(std::uint32_t state, const std::byte*& data,
                                                   std::size_t& size) noexcept {
  constexpr std::uint32_t one_lane = power_of_x(8 * static_cast<std::int64_t>(kLane) - 33);
  constexpr std::uint32_t two_lanes = power_of_x(16 * static_cast<std::int64_t>(kLane) - 33);
  constexpr std::size_t step = kLane % 64 == 0 ? 64 : 8;
  static_assert(kLane % 8 == 0 && kLane > 0);
  for (; size >= 3 * kLane; data += 3 * kLane, size -= 3 * kLane) {
    std::uint32_t a = state;
    std::uint32_t b = 0;
    std::uint32_t c = 0;
    for (std::size_t i = 0; i < kLane; i += step) {
      if constexpr (step == 64) {  // the processor's own prefetching is slow to see three streams that jump
        for (std::size_t lane = 3; lane < 6; ++lane) __builtin_prefetch(data + lane * kLane + i);
      }
      for (std::size_t k = i; k < i + step; k += 8) {
        a = crc_word(a, load(data + k));
        b = crc_word(b, load(data + kLane + k));
        c = crc_word(c, load(data + 2 * kLane + k));
      }
    }
    state = crc_word(0, carryless(a, two_lanes) ^ carryless(b, one_lane)) ^ c;
  }
  return state;
}

TORCHSNAPSHOT_CRC std::uint32_t update(std::uint32_t state, const std::byte* data, std::size_t size) noexcept {
  state = three_lanes<1344>(state, data, size);
  state = three_lanes<192>(state, data, size);
  state = three_lanes<32>(state, data, size);
  for (; size >= 8; data += 8, size -= 8) state = crc_word(state, load(data));
  for (; size != 0; ++data, --size) state = crc_byte(state, *data);
  return state;
}

TORCHSNAPSHOT_CRC std::uint32_t shift(std::uint32_t state, std::uint64_t zeros) noexcept {
  for (std::size_t k = 0; zeros != 0; ++k, zeros >>= 4) {
    if ((zeros & 15) != 0) state = crc_word(0, carryless(state, kShiftCarryless[k][zeros & 15]));
  }
  return state;
}

}  // namespace

#if defined(__x86_64__)

constexpr Crc32cKernel kSse42Kernel{"sse42", update, copy_in_chunks<update>, shift};

bool have_sse42() noexcept {
  __builtin_cpu_init();
  return __builtin_cpu_supports("sse4.2") != 0 && __builtin_cpu_supports("pclmul") != 0;
}

#else

constexpr Crc32cKernel kArmv8Kernel{"armv8", update, copy_in_chunks<update>, shift};

bool have_armv8() noexcept {
  constexpr unsigned long pmull = 1UL << 4;  // HWCAP_PMULL
  constexpr unsigned long crc32 = 1UL << 7;  // HWCAP_CRC32
  return (getauxval(AT_HWCAP) & (pmull | crc32)) == (pmull | crc32);
}

#endif

}  // namespace torchsnapshot::detail

#endif
