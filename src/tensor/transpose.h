// Transposition of blocks of small units in registers. Internal to copy_box.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace torchsnapshot {

/// 16 bytes as units of a size, and the two interleavings of such registers.
template <std::size_t kSize>
struct Register;
template <>
struct Register<1> {
  using Type [[gnu::vector_size(16)]] = std::uint8_t;
  static Type low(Type a, Type b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  }
  static Type high(Type a, Type b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
};
template <>
struct Register<2> {
  using Type [[gnu::vector_size(16)]] = std::uint16_t;
  static Type low(Type a, Type b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
  static Type high(Type a, Type b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
};
template <>
struct Register<4> {
  using Type [[gnu::vector_size(16)]] = std::uint32_t;
  static Type low(Type a, Type b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
  static Type high(Type a, Type b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
};
template <>
struct Register<8> {
  using Type [[gnu::vector_size(16)]] = std::uint64_t;
  static Type low(Type a, Type b) { return __builtin_shufflevector(a, b, 0, 2); }
  static Type high(Type a, Type b) { return __builtin_shufflevector(a, b, 1, 3); }
};

/// Units that fit a register, and so rows and columns of the smallest block.
template <std::size_t kSize>
inline constexpr std::size_t kUnitsPerRegister = 16 / kSize;

/// Writes to row c of `dst` what column c of `src` holds, for a square block of kUnitsPerRegister rows; pitches are
/// bytes from row to row.
template <std::size_t kSize>
void transpose_block(std::byte* dst, std::ptrdiff_t dst_pitch, const std::byte* src, std::size_t src_pitch) {
  if constexpr (kSize == 16) {
    std::memcpy(dst, src, 16);
  } else {
    constexpr std::size_t kCount = kUnitsPerRegister<kSize>;
    using Units = Register<kSize>;
    typename Units::Type rows[kCount];
    for (std::size_t r = 0; r < kCount; ++r) std::memcpy(&rows[r], src + r * src_pitch, 16);
    // Each round interleaves row r with row r + kCount / 2, which rotates the bits of (row, column) by one; after as
    // many rounds as a row number has bits, rows and columns have changed places.
    for (std::size_t round = 1; round < kCount; round *= 2) {
      typename Units::Type next[kCount];
      for (std::size_t r = 0; r < kCount / 2; ++r) {
        next[2 * r] = Units::low(rows[r], rows[r + kCount / 2]);
        next[2 * r + 1] = Units::high(rows[r], rows[r + kCount / 2]);
      }
      std::memcpy(rows, next, sizeof rows);
    }
    for (std::size_t r = 0; r < kCount; ++r) {
      std::memcpy(dst + static_cast<std::ptrdiff_t>(r) * dst_pitch, &rows[r], 16);
    }
  }
}

}  // namespace torchsnapshot
