// Text that came from outside: is it UTF-8, and how is it shown in a message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace torchsnapshot {

/// Surrogates may stand alone in a Python str. Our strings hold them as WTF-8: each as the three bytes that
/// the UTF-8 scheme would give it.
enum class Surrogates : std::uint8_t { kRefuse, kAccept };

/// Bytes of the well-formed UTF-8 sequence at `text[at]`, 1 to 4; 0 when there is none (overlong, above U+10FFFF,
/// cut off, a stray byte, or a surrogate that is refused). `at` < text.size().
std::size_t utf8_sequence(std::string_view text, std::size_t at, Surrogates surrogates) noexcept;

/// The code point of the sequence of `length` bytes at `text[at]`, as found by utf8_sequence.
char32_t decode_utf8(std::string_view text, std::size_t at, std::size_t length) noexcept;

/// Appends the UTF-8 form of a code point up to U+10FFFF (WTF-8 for a surrogate).
void append_utf8(char32_t code_point, std::string& out);

/// `text` in single quotes for a message: control characters and bytes that are no UTF-8 as \xHH, and at most about
/// 200 bytes, the middle left out.
std::string quote_text(std::string_view text);

}  // namespace torchsnapshot
