// Elements as numbers: what tools that look at tensors need.
#pragma once

#include <bit>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "torchsnapshot/tensor.h"

namespace torchsnapshot {

enum class ElementKind : std::uint8_t {
  kFloat,
  kComplex,
  kInteger,
  kBits,  ///< no numbers: bits, packed, and quantized elements without their scale
};
ElementKind element_kind(DType dtype) noexcept;

/// IEEE half precision.
float half_to_float(std::uint16_t bits) noexcept;
/// An element of one of the 8-bit floating-point types.
float float8_to_float(DType dtype, std::uint8_t bits) noexcept;

namespace detail {

template <typename T, typename Visit>
void each(std::span<const std::byte> bytes, Visit visit) {
  for (std::size_t at = 0; at + sizeof(T) <= bytes.size(); at += sizeof(T)) {
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    visit(value);
  }
}

template <typename Part, typename Visit>
void each_complex(std::span<const std::byte> bytes, Visit visit) {
  struct Pair {
    Part re, im;
  };
  each<Pair>(bytes, visit);
}

}  // namespace detail

/// Calls `visit` for each of the dense elements: with a double, a std::complex<double>, a std::int64_t or a
/// std::uint64_t. Nothing for kBits.
template <typename Visit>
void for_each_element(DType dtype, std::span<const std::byte> bytes, Visit visit) {
  const auto to_double = [&](auto value) { visit(static_cast<double>(value)); };
  const auto to_signed = [&](auto value) { visit(static_cast<std::int64_t>(value)); };
  const auto to_unsigned = [&](auto value) { visit(static_cast<std::uint64_t>(value)); };
  const auto to_complex = [&](auto pair) {
    visit(std::complex<double>(static_cast<double>(pair.re), static_cast<double>(pair.im)));
  };
  switch (dtype) {
    case DType::kFloat64:
      return detail::each<double>(bytes, to_double);
    case DType::kFloat32:
      return detail::each<float>(bytes, to_double);
    case DType::kFloat16:
      return detail::each<std::uint16_t>(bytes, [&](std::uint16_t bits) { to_double(half_to_float(bits)); });
    case DType::kBFloat16:
      return detail::each<std::uint16_t>(
          bytes, [&](std::uint16_t bits) { to_double(std::bit_cast<float>(std::uint32_t{bits} << 16)); });
    case DType::kComplex128:
      return detail::each_complex<double>(bytes, to_complex);
    case DType::kComplex64:
      return detail::each_complex<float>(bytes, to_complex);
    case DType::kComplex32:
      return detail::each_complex<std::uint16_t>(
          bytes, [&](auto pair) { visit(std::complex<double>(half_to_float(pair.re), half_to_float(pair.im))); });
    case DType::kInt64:
      return detail::each<std::int64_t>(bytes, to_signed);
    case DType::kInt32:
      return detail::each<std::int32_t>(bytes, to_signed);
    case DType::kInt16:
      return detail::each<std::int16_t>(bytes, to_signed);
    case DType::kInt8:
      return detail::each<std::int8_t>(bytes, to_signed);
    case DType::kUInt64:
      return detail::each<std::uint64_t>(bytes, to_unsigned);
    case DType::kUInt32:
      return detail::each<std::uint32_t>(bytes, to_unsigned);
    case DType::kUInt16:
      return detail::each<std::uint16_t>(bytes, to_unsigned);
    case DType::kUInt8:
      return detail::each<std::uint8_t>(bytes, to_unsigned);
    case DType::kBool:
      return detail::each<std::uint8_t>(bytes, [&](std::uint8_t value) { to_unsigned(value != 0); });
    case DType::kFloat8E4M3FN:
    case DType::kFloat8E4M3FNUZ:
    case DType::kFloat8E5M2:
    case DType::kFloat8E5M2FNUZ:
    case DType::kFloat8E8M0FNU:
      return detail::each<std::uint8_t>(bytes, [&](std::uint8_t bits) { to_double(float8_to_float(dtype, bits)); });
    case DType::kFloat4E2M1FNx2:
    case DType::kBits8:
    case DType::kBits16:
    case DType::kQInt8:
    case DType::kQUInt8:
    case DType::kQInt32:
      return;
  }
}

}  // namespace torchsnapshot
