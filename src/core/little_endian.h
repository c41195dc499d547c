// Numbers in bytes, the lowest byte first, as all binary formats of ours have them.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <type_traits>

namespace torchsnapshot {

/// Appends the sizeof(Number) bytes of `value`.
template <class Number>
void put_little_endian(std::string& out, Number value) {
  static_assert(std::is_unsigned_v<Number>);
  for (std::size_t i = 0; i < sizeof value; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xFF));
}

/// The number whose bytes begin at `at`; they are all there.
template <class Number>
Number get_little_endian(std::string_view bytes, std::size_t at = 0) noexcept {
  static_assert(std::is_unsigned_v<Number>);
  Number value = 0;
  for (std::size_t i = 0; i < sizeof value; ++i) value |= Number{static_cast<unsigned char>(bytes[at + i])} << (8 * i);
  return value;
}

}  // namespace torchsnapshot
