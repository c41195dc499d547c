// Where a CRC kernel reads, and for a copy where it writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace torchsnapshot::detail {

/// A read position, and for a copy a write position.
template <bool kCopy>
struct Cursor {
  const std::byte* src;
  std::byte* dst;
  std::size_t left;

  void skip(std::size_t size) noexcept {
    src += size;
    if constexpr (kCopy) dst += size;
    left -= size;
  }
  /// The eight bytes `offset` bytes ahead, which are copied.
  [[nodiscard]] std::uint64_t word(std::size_t offset) const noexcept {
    std::uint64_t value = 0;
    std::memcpy(&value, src + offset, sizeof value);
    if constexpr (kCopy) std::memcpy(dst + offset, &value, sizeof value);
    return value;
  }
};

}  // namespace torchsnapshot::detail
