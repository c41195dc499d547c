// What a plain (unquoted) YAML scalar means, by the rules of YAML 1.1 that PyYAML follows.
#pragma once

#include <cstdint>
#include <string_view>

namespace torchsnapshot {

enum class ScalarKind : std::uint8_t {
  kString,
  kInteger,  ///< canonical decimal
  kBool,
  kNull,
  kOther,  ///< a float, a date, or an integer in another notation: nothing that metadata has
};

ScalarKind resolve_plain_scalar(std::string_view text) noexcept;

}  // namespace torchsnapshot
