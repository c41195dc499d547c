// Arithmetic of polynomials modulo that of CRC-32C, for tables and constants that are made at compile time.
//
// The polynomial (Castagnoli, Braeuer, Herrmann, IEEE Trans. Commun. 41(6), 1993; RFC 3720 section 12.1) is
// P = x^32 + x^28 + x^27 + x^26 + x^25 + x^23 + x^22 + x^20 + x^19 + x^18 + x^14 + x^13 + x^11 + x^10 + x^9 + x^8 +
// x^6 + 1, 0x11EDC6F41. The CRC is reflected: bit 31 - i of a word is the coefficient of x^i.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace torchsnapshot::detail {

inline constexpr std::uint32_t kCrc32cPolynomial = 0x82F63B78;  ///< P without x^32, reflected
inline constexpr std::uint32_t kOne = 0x80000000;               ///< x^0, reflected

/// P is (x + 1) times a primitive polynomial of degree 31, so powers of x repeat after this many.
inline constexpr std::uint64_t kOrderOfX = 0x7FFFFFFF;

/// a · x mod P.
constexpr std::uint32_t times_x(std::uint32_t a) noexcept {
  return (a >> 1) ^ ((a & 1) != 0 ? kCrc32cPolynomial : 0);
}

/// a · b mod P.
constexpr std::uint32_t times(std::uint32_t a, std::uint32_t b) noexcept {
  std::uint32_t product = 0;
  for (int i = 0; i < 32; ++i) {
    product ^= b & (0 - (a >> 31));
    a <<= 1;
    b = (b >> 1) ^ (kCrc32cPolynomial & (0 - (b & 1)));
  }
  return product;
}

/// x^exponent mod P; a negative exponent is the inverse, since P has the term 1.
constexpr std::uint32_t power_of_x(std::int64_t exponent) noexcept {
  const auto order = static_cast<std::int64_t>(kOrderOfX);
  std::int64_t left = (exponent % order + order) % order;
  std::uint32_t result = kOne;
  for (std::uint32_t square = times_x(kOne); left != 0; left >>= 1) {
    if ((left & 1) != 0) result = times(result, square);
    square = times(square, square);
  }
  return result;
}

/// [k][d] = x^(8 · d · 16^k) · factor: what d · 16^k bytes do to the CRC before them.
using ShiftTable = std::array<std::array<std::uint32_t, 16>, 16>;

constexpr ShiftTable make_shift_table(std::uint32_t factor) noexcept {
  ShiftTable table{};
  std::uint32_t base = power_of_x(8);
  for (auto& row : table) {
    std::uint32_t power = kOne;
    for (auto& entry : row) {
      entry = times(power, factor);
      power = times(power, base);
    }
    base = power;  // base^16
  }
  return table;
}

/// For `times`.
inline constexpr ShiftTable kShift = make_shift_table(kOne);
/// For a carry-less multiplication, of which the 64-bit product is reduced by a CRC instruction: the product of two
/// reflected 32-bit words has x^i at bit 62 - i where the instruction takes bit 63 - i, which is a factor x, and the
/// instruction multiplies by x^32.
inline constexpr ShiftTable kShiftCarryless = make_shift_table(power_of_x(-33));

}  // namespace torchsnapshot::detail
