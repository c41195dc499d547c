// Text forms of bytes: hex, base64, percent-encoding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace torchsnapshot {

/// Lower-case hex.
std::string to_hex(std::span<const std::uint8_t> bytes);

/// RFC 4648 with padding.
std::string to_base64(std::span<const std::uint8_t> bytes);
/// RFC 4648 section 5 (URL-safe), without padding.
std::string to_base64url(std::span<const std::uint8_t> bytes);

/// Every byte but A-Z a-z 0-9 - _ . ~ (and '/' where `keep_slash`) as %XX with upper-case digits: the form that
/// signatures are made of.
std::string percent_encode(std::string_view text, bool keep_slash = false);
/// The reverse; nothing when a '%' is not followed by two hex digits. '+' stays '+'.
std::optional<std::string> percent_decode(std::string_view text);

/// The bytes of a text as the functions above take them.
inline std::span<const std::uint8_t> as_octets(std::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

/// ASCII lower case, whatever the locale.
std::string to_lower_ascii(std::string_view text);
/// Without spaces, tabs, CR and LF at both ends.
std::string_view trim_ascii(std::string_view text);
/// True when the two are the same but for the case of ASCII letters.
bool equal_ignoring_case(std::string_view a, std::string_view b);

}  // namespace torchsnapshot
