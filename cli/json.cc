#include "cli/json.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <utility>

#include "core/text.h"

namespace torchsnapshot::cli {

Json& Json::key(std::string_view name) {
  separate();
  quote(name);
  out_ += ": ";
  after_key_ = true;
  return *this;
}

Json& Json::value(std::string_view text) {
  separate();
  quote(text);
  return *this;
}

Json& Json::value(double number) {
  if (std::isnan(number)) return value("NaN");
  if (std::isinf(number)) return value(number > 0 ? "Infinity" : "-Infinity");
  std::array<char, 32> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), number).ptr;
  return raw({text.data(), static_cast<std::size_t>(end - text.data())});
}

Json& Json::value(const Number& number) {
  if (const auto* complex = std::get_if<std::complex<double>>(&number)) {
    return begin_array().value(complex->real()).value(complex->imag()).end_array();
  }
  if (const auto* real = std::get_if<double>(&number)) return value(*real);
  if (const auto* whole = std::get_if<std::int64_t>(&number)) return value(*whole);
  return value(std::get<std::uint64_t>(number));
}

std::string Json::take() {
  out_ += '\n';
  return std::exchange(out_, {});
}

Json& Json::begin(char bracket) {
  separate();
  out_ += bracket;
  empty_.push_back(true);
  return *this;
}

Json& Json::end(char bracket) {
  const bool was_empty = empty_.back();
  empty_.pop_back();
  if (!was_empty) indent();
  out_ += bracket;
  return *this;
}

Json& Json::raw(std::string_view text) {
  separate();
  out_ += text;
  return *this;
}

void Json::separate() {
  if (std::exchange(after_key_, false) || empty_.empty()) return;
  if (!empty_.back()) out_ += ',';
  empty_.back() = false;
  indent();
}

void Json::indent() {
  if (one_line_) {
    if (out_.back() == ',') out_ += ' ';
    return;
  }
  out_ += '\n';
  out_.append(2 * empty_.size(), ' ');
}

void Json::quote(std::string_view text) {
  out_ += '"';
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = utf8_sequence(text, at, Surrogates::kAccept);
    if (length == 0) {
      out_ += "\\ufffd";
      ++at;
      continue;
    }
    const char32_t symbol = decode_utf8(text, at, length);
    if (symbol == '"' || symbol == '\\') {
      out_ += '\\';
      out_ += static_cast<char>(symbol);
    } else if (symbol < 0x20 || (symbol >= 0x7F && symbol <= 0x9F) || (symbol >= 0xD800 && symbol <= 0xDFFF)) {
      std::array<char, 8> escape{};
      std::snprintf(escape.data(), escape.size(), "\\u%04x", static_cast<unsigned>(symbol));
      out_ += escape.data();
    } else {
      out_ += text.substr(at, length);
    }
    at += length;
  }
  out_ += '"';
}

}  // namespace torchsnapshot::cli
