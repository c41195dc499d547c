#include "tensor/elements.h"

#include <cmath>
#include <limits>

namespace torchsnapshot {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// A number of 1 sign bit, and exponent and mantissa of these widths, without special values.
float small_float(unsigned bits, int mantissa_bits, int exponent_bits, int bias) noexcept {
  const auto mantissa = static_cast<int>(bits & ((1U << mantissa_bits) - 1));
  const auto exponent = static_cast<int>((bits >> mantissa_bits) & ((1U << exponent_bits) - 1));
  const bool negative = ((bits >> (mantissa_bits + exponent_bits)) & 1U) != 0;
  const int whole = exponent == 0 ? mantissa : mantissa + (1 << mantissa_bits);
  const float value = std::ldexp(static_cast<float>(whole), (exponent == 0 ? 1 : exponent) - bias - mantissa_bits);
  return negative ? -value : value;
}

}  // namespace

ElementKind element_kind(DType dtype) noexcept {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kFloat32:
    case DType::kFloat16:
    case DType::kBFloat16:
    case DType::kFloat8E4M3FN:
    case DType::kFloat8E4M3FNUZ:
    case DType::kFloat8E5M2:
    case DType::kFloat8E5M2FNUZ:
    case DType::kFloat8E8M0FNU:
      return ElementKind::kFloat;
    case DType::kComplex128:
    case DType::kComplex64:
    case DType::kComplex32:
      return ElementKind::kComplex;
    case DType::kInt64:
    case DType::kInt32:
    case DType::kInt16:
    case DType::kInt8:
    case DType::kUInt64:
    case DType::kUInt32:
    case DType::kUInt16:
    case DType::kUInt8:
    case DType::kBool:
      return ElementKind::kInteger;
    case DType::kFloat4E2M1FNx2:
    case DType::kBits8:
    case DType::kBits16:
    case DType::kQInt8:
    case DType::kQUInt8:
    case DType::kQInt32:
      break;
  }
  return ElementKind::kBits;
}

float half_to_float(std::uint16_t bits) noexcept {
  const std::uint32_t sign = (bits & 0x8000U) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1FU;
  const std::uint32_t mantissa = bits & 0x3FFU;
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) * 0x1p-24F;
    return sign != 0 ? -value : value;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000U | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

float float8_to_float(DType dtype, std::uint8_t bits) noexcept {
  switch (dtype) {
    case DType::kFloat8E4M3FN:  // no infinity
      return (bits & 0x7FU) == 0x7FU ? kNan : small_float(bits, 3, 4, 7);
    case DType::kFloat8E4M3FNUZ:  // no infinity, no negative zero
      return bits == 0x80U ? kNan : small_float(bits, 3, 4, 8);
    case DType::kFloat8E5M2:
      return half_to_float(static_cast<std::uint16_t>(bits << 8));
    case DType::kFloat8E5M2FNUZ:
      return bits == 0x80U ? kNan : small_float(bits, 2, 5, 16);
    case DType::kFloat8E8M0FNU:  // an exponent and nothing else
      return bits == 0xFFU ? kNan : std::ldexp(1.0F, bits - 127);
    default:
      return kNan;
  }
}

}  // namespace torchsnapshot
