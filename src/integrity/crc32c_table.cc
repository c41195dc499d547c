// CRC-32C without special instructions: eight tables, eight bytes a step ("slicing by 8": Kounavis and Berry, "A
// Systematic Approach to Building High Performance Software-Based CRC Generators", ISCC 2005).
#include <array>

#include "integrity/crc32c_kernels.h"
#include "integrity/crc32c_polynomial.h"

namespace torchsnapshot::detail {
namespace {

using SliceTables = std::array<std::array<std::uint32_t, 256>, 8>;

/// [k][b]: the register that byte b and k zero bytes leave, when it was 0 before.
constexpr SliceTables make_slice_tables() noexcept {
  SliceTables tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t state = byte;
    for (auto& table : tables) {
      for (int bit = 0; bit < 8; ++bit) state = times_x(state);
      table[byte] = state;
    }
  }
  return tables;
}

constexpr SliceTables kSlices = make_slice_tables();

std::uint32_t load32(const std::byte* p) noexcept {
  return std::to_integer<std::uint32_t>(p[0]) | std::to_integer<std::uint32_t>(p[1]) << 8 |
         std::to_integer<std::uint32_t>(p[2]) << 16 | std::to_integer<std::uint32_t>(p[3]) << 24;
}

std::uint32_t update(std::uint32_t state, const std::byte* data, std::size_t size) noexcept {
  for (; size >= 8; data += 8, size -= 8) {
    const std::uint32_t low = state ^ load32(data);
    const std::uint32_t high = load32(data + 4);
    state = kSlices[7][low & 0xFF] ^ kSlices[6][low >> 8 & 0xFF] ^ kSlices[5][low >> 16 & 0xFF] ^
            kSlices[4][low >> 24] ^ kSlices[3][high & 0xFF] ^ kSlices[2][high >> 8 & 0xFF] ^
            kSlices[1][high >> 16 & 0xFF] ^ kSlices[0][high >> 24];
  }
  for (; size != 0; ++data, --size) {
    state = state >> 8 ^ kSlices[0][(state ^ std::to_integer<std::uint32_t>(*data)) & 0xFF];
  }
  return state;
}

std::uint32_t shift(std::uint32_t state, std::uint64_t zeros) noexcept {
  for (std::size_t k = 0; zeros != 0; ++k, zeros >>= 4) {
    if ((zeros & 15) != 0) state = times(state, kShift[k][zeros & 15]);
  }
  return state;
}

}  // namespace

constexpr Crc32cKernel kTableKernel{"table", update, copy_in_chunks<update>, shift};

}  // namespace torchsnapshot::detail
