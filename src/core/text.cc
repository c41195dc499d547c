#include "core/text.h"

namespace torchsnapshot {
namespace {

constexpr std::size_t kShownBytes = 200;

std::uint8_t byte_at(std::string_view text, std::size_t at) noexcept {
  return static_cast<std::uint8_t>(text[at]);
}

bool is_continuation(std::string_view text, std::size_t at) noexcept {
  return at < text.size() && (byte_at(text, at) & 0xC0) == 0x80;
}

void append_printable(std::string_view text, std::string& out) {
  constexpr std::string_view kHex = "0123456789abcdef";
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = utf8_sequence(text, at, Surrogates::kRefuse);
    const std::uint8_t byte = byte_at(text, at);
    if (length == 0 || byte < 0x20 || byte == 0x7F) {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
      ++at;
    } else {
      out += text.substr(at, length);
      at += length;
    }
  }
}

}  // namespace

std::size_t utf8_sequence(std::string_view text, std::size_t at, Surrogates surrogates) noexcept {
  const std::uint8_t lead = byte_at(text, at);
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (!is_continuation(text, at + 1)) return 0;
  if (lead < 0xE0) return 2;
  const std::uint8_t second = byte_at(text, at + 1);
  if (!is_continuation(text, at + 2)) return 0;
  if (lead < 0xF0) {
    if (lead == 0xE0 && second < 0xA0) return 0;
    if (lead == 0xED && second >= 0xA0 && surrogates == Surrogates::kRefuse) return 0;
    return 3;
  }
  if (lead > 0xF4 || !is_continuation(text, at + 3)) return 0;
  if ((lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second >= 0x90)) return 0;
  return 4;
}

char32_t decode_utf8(std::string_view text, std::size_t at, std::size_t length) noexcept {
  if (length == 1) return byte_at(text, at);
  char32_t code_point = byte_at(text, at) & (0x7FU >> length);
  for (std::size_t i = 1; i < length; ++i) code_point = (code_point << 6) | (byte_at(text, at + i) & 0x3FU);
  return code_point;
}

void append_utf8(char32_t code_point, std::string& out) {
  const auto put = [&out](char32_t byte) { out += static_cast<char>(byte); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | (code_point >> 6));
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | (code_point >> 12));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | (code_point >> 18));
    put(0x80 | ((code_point >> 12) & 0x3F));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

std::string quote_text(std::string_view text) {
  std::string out = "'";
  if (text.size() <= kShownBytes) {
    append_printable(text, out);
  } else {
    // Cut between characters, so that the halves stay readable.
    std::size_t head = kShownBytes / 2;
    while (head > 0 && is_continuation(text, head)) --head;
    std::size_t tail = text.size() - kShownBytes / 2;
    while (tail < text.size() && is_continuation(text, tail)) ++tail;
    append_printable(text.substr(0, head), out);
    out += "[...]";
    append_printable(text.substr(tail), out);
  }
  out += "'";
  return out;
}

}  // namespace torchsnapshot
