// The name of one take: part of the location of everything that it writes.
#pragma once

#include <cstddef>
#include <string_view>

namespace torchsnapshot {

inline constexpr std::size_t kTakeIdDigits = 32;

/// Whether `text` is one: 128 random bits in lower-case hex.
inline bool is_take_id(std::string_view text) noexcept {
  return text.size() == kTakeIdDigits && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

}  // namespace torchsnapshot
