#include "manifest/primitive.h"

#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "core/text.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr std::size_t kDoubleBytes = 8;

constexpr std::array<std::int8_t, 256> kSextets = [] {
  std::array<std::int8_t, 256> table{};
  table.fill(-1);
  for (std::size_t i = 0; i < kAlphabet.size(); ++i) {
    table[static_cast<std::uint8_t>(kAlphabet[i])] = static_cast<std::int8_t>(i);
  }
  return table;
}();

/// The bytes of canonical padded base64, handed to `put` one by one; false for anything else.
template <typename Put>
bool decode_base64(std::string_view text, Put put) {
  if (text.size() % 4 != 0) return false;
  for (std::size_t at = 0; at < text.size(); at += 4) {
    std::size_t padding = 0;
    if (at + 4 == text.size()) {
      if (text[at + 3] == '=') ++padding;
      if (padding == 1 && text[at + 2] == '=') ++padding;
    }
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      const int sextet = i < 4 - padding ? kSextets[static_cast<std::uint8_t>(text[at + i])] : 0;
      if (sextet < 0) return false;
      bits = (bits << 6) | static_cast<std::uint32_t>(sextet);
    }
    // Bits that the padding cuts off must be zero, or two texts would mean the same bytes.
    if ((bits & ((1U << (8 * padding)) - 1)) != 0) return false;
    for (std::size_t i = 0; i < 3 - padding; ++i) put(static_cast<char>((bits >> (16 - 8 * i)) & 0xFF));
  }
  return true;
}

bool is_base64(std::string_view text) {
  return decode_base64(text, [](char) {});
}

bool is_canonical_integer(std::string_view text) {
  std::string_view digits = text;
  if (!digits.empty() && digits.front() == '-') digits.remove_prefix(1);
  if (digits.empty() || (digits.front() == '0' && text.size() > 1)) return false;
  return digits.find_first_not_of("0123456789") == std::string_view::npos;
}

[[noreturn]] void malformed(std::string_view type, std::string_view text) {
  throw Error(ErrorCode::kCorrupt, "serialized_value " + quote_text(text) + " is no " + std::string(type));
}

}  // namespace

void check_primitive(const PrimitiveEntry& entry) {
  const std::string_view text = entry.serialized_value;
  switch (entry.type) {
    case PrimitiveType::kInt:
      if (!is_canonical_integer(text)) malformed("int", text);
      return;
    case PrimitiveType::kStr:
      return;
    case PrimitiveType::kBool:
      if (text != "True" && text != "False") malformed("bool", text);
      return;
    case PrimitiveType::kBytes:
      if (!is_base64(text)) malformed("bytes (canonical base64)", text);
      return;
    case PrimitiveType::kFloat:
      if (text.size() != 12 || text[10] == '=' || text[11] != '=' || !is_base64(text)) {
        malformed("float (base64 of 8 bytes)", text);
      }
      return;
  }
}

PrimitiveEntry make_primitive_entry(const Value& value, bool replicated) {
  if (const auto* integer = value.get_if<Integer>()) {
    return {PrimitiveType::kInt, integer->decimal, std::nullopt, replicated};
  }
  if (const auto* number = value.get_if<double>()) {
    const auto bits = std::bit_cast<std::uint64_t>(*number);
    std::string bytes(kDoubleBytes, '\0');
    for (std::size_t i = 0; i < kDoubleBytes; ++i) bytes[i] = static_cast<char>((bits >> (8 * i)) & 0xFF);
    return {PrimitiveType::kFloat, base64_encode(bytes), python_float_repr(*number), replicated};
  }
  if (const auto* flag = value.get_if<bool>()) {
    return {PrimitiveType::kBool, *flag ? "True" : "False", std::nullopt, replicated};
  }
  if (const auto* text = value.get_if<std::string>()) return {PrimitiveType::kStr, *text, std::nullopt, replicated};
  if (const auto* bytes = value.get_if<Bytes>()) {
    return {PrimitiveType::kBytes, base64_encode(bytes->data), std::nullopt, replicated};
  }
  throw Error(ErrorCode::kInternal, "make_primitive_entry: the value is no primitive");
}

Value primitive_value(const PrimitiveEntry& entry) {
  check_primitive(entry);
  switch (entry.type) {
    case PrimitiveType::kInt:
      return Integer(entry.serialized_value);
    case PrimitiveType::kStr:
      return entry.serialized_value;
    case PrimitiveType::kBool:
      return entry.serialized_value == "True";
    case PrimitiveType::kBytes:
      return Bytes{base64_decode(entry.serialized_value)};
    case PrimitiveType::kFloat: {
      std::uint64_t bits = 0;
      int shift = 0;
      decode_base64(entry.serialized_value, [&](char byte) {
        bits |= std::uint64_t{static_cast<std::uint8_t>(byte)} << shift;
        shift += 8;
      });
      return std::bit_cast<double>(bits);
    }
  }
  throw Error(ErrorCode::kInternal, "primitive_value: unknown type");
}

std::string base64_encode(std::string_view bytes) {
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t at = 0; at < bytes.size(); at += 3) {
    const std::size_t count = std::min<std::size_t>(3, bytes.size() - at);
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      bits = (bits << 8) | (i < count ? static_cast<std::uint8_t>(bytes[at + i]) : 0U);
    }
    for (std::size_t i = 0; i < 4; ++i) out += i <= count ? kAlphabet[(bits >> (18 - 6 * i)) & 63] : '=';
  }
  return out;
}

std::string base64_decode(std::string_view text) {
  std::string out;
  out.reserve(text.size() / 4 * 3);
  if (!decode_base64(text, [&out](char byte) { out += byte; })) {
    throw Error(ErrorCode::kCorrupt, quote_text(text) + " is no canonical base64");
  }
  return out;
}

std::string python_float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  // "-d.dddde[+-]XX", the shortest digits that read back.
  std::array<char, 32> buffer{};
  const auto written =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::scientific);
  std::string_view text(buffer.data(), static_cast<std::size_t>(written.ptr - buffer.data()));
  std::string out;
  if (text.front() == '-') {
    out = "-";
    text.remove_prefix(1);
  }
  const std::size_t e = text.find('e');
  const int exponent = std::atoi(text.data() + e + 1);  // NOLINT(cert-err34-c): to_chars wrote it; buffer ends in NULs
  std::string digits(1, text[0]);
  if (e > 1) digits += text.substr(2, e - 2);
  const int count = static_cast<int>(digits.size());
  // Python's rule: plain notation for 1e-4 <= |value| < 1e16.
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (count > 1) out += "." + digits.substr(1);
    const std::string power = std::to_string(std::abs(exponent));
    out += exponent < 0 ? "e-" : "e+";
    return out + (power.size() < 2 ? "0" : "") + power;
  }
  if (exponent < 0) return out + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  if (exponent + 1 >= count)
    return out + digits + std::string(static_cast<std::size_t>(exponent + 1 - count), '0') + ".0";
  const auto point = static_cast<std::size_t>(exponent + 1);
  return out + digits.substr(0, point) + "." + digits.substr(point);
}

}  // namespace torchsnapshot
