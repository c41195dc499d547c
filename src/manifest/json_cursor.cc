#include "manifest/json_cursor.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>

#include "core/text.h"

namespace torchsnapshot {
namespace {

/// The eight bytes from `at` on; the first is the lowest.
std::uint64_t load_word(const char* at) noexcept {
  std::uint64_t word = 0;
  std::memcpy(&word, at, sizeof word);
  if constexpr (std::endian::native == std::endian::big) word = __builtin_bswap64(word);
  return word;
}

/// Index of the lowest byte that is not zero; 8 if all are.
std::size_t first_marked(std::uint64_t word) noexcept {
  return static_cast<std::size_t>(std::countr_zero(word)) / 8;
}

constexpr std::uint64_t kOnes = 0x0101010101010101ULL;
constexpr std::uint64_t kHighs = 0x8080808080808080ULL;

/// How many of the eight bytes come before the first that is a quote, a backslash, a control character or no ASCII.
/// Only what follows such a byte can be mistaken for one, by the borrow, so the first is exact.
std::size_t plain_bytes(std::uint64_t word) noexcept {
  const std::uint64_t quote = word ^ (kOnes * '"');
  const std::uint64_t backslash = word ^ (kOnes * '\\');
  return first_marked(
      (((quote - kOnes) & ~quote) | ((backslash - kOnes) & ~backslash) | ((word - kOnes * 0x20) & ~word) | word) &
      kHighs);
}

bool is_digit(char c) noexcept {
  return c >= '0' && c <= '9';
}

}  // namespace

void JsonCursor::fail_at(const char* place, const std::string& what, ErrorCode code) const {
  const auto lines = std::count(begin_, place, '\n');
  const char* line_start = place;
  while (line_start != begin_ && line_start[-1] != '\n') --line_start;
  throw error_at(static_cast<std::size_t>(lines) + 1, static_cast<std::size_t>(place - line_start) + 1, what, code);
}

void JsonCursor::fail(std::string_view what, ErrorCode code) const {
  fail_at(token_, std::string(what), code);
}

void JsonCursor::bad_syntax(std::string_view what) const {
  if (at_ == end_) fail_at(at_, "not valid JSON: the text ends too early (truncated?)", ErrorCode::kCorrupt);
  fail_at(at_, "not valid JSON: " + std::string(what), ErrorCode::kCorrupt);
}

void JsonCursor::skip_run_of_blanks() noexcept {
  for (;;) {
    // Mostly a line's end and its indent.
    while (end_ - at_ >= 8) {
      const std::size_t spaces = first_marked(load_word(at_) ^ (kOnes * ' '));
      at_ += spaces;
      if (spaces < 8) break;
    }
    if (at_ == end_ || (*at_ != ' ' && *at_ != '\n' && *at_ != '\r' && *at_ != '\t')) return;
    ++at_;
  }
}

ValueKind JsonCursor::peek() {
  skip_blanks();
  token_ = at_;
  if (at_ == end_) bad_syntax("");
  switch (*at_) {
    case '{':
      return ValueKind::kObject;
    case '[':
      return ValueKind::kArray;
    case '"':
      return ValueKind::kString;
    case 't':
    case 'f':
      return ValueKind::kBool;
    case 'n':
      return ValueKind::kNull;
    default:
      if (*at_ == '-' || is_digit(*at_)) return ValueKind::kNumber;
      bad_syntax("expected a value, found " + quote_text({at_, 1}));
  }
}

void JsonCursor::expect(ValueKind wanted) {
  const ValueKind found = peek();
  if (found != wanted) {
    fail("expected " + std::string(kind_name(wanted)) + ", found " + std::string(kind_name(found)));
  }
}

void JsonCursor::open(ValueKind kind) {
  expect(kind);
  ++at_;
  first_ = true;
}

bool JsonCursor::next_element() {
  skip_blanks();
  token_ = at_;
  if (at_ == end_) bad_syntax("");
  if (*at_ == ']') {
    ++at_;
    first_ = false;
    return false;
  }
  if (first_) {
    first_ = false;
    return true;
  }
  if (*at_ != ',') bad_syntax("expected ',' or ']', found " + quote_text({at_, 1}));
  ++at_;
  skip_blanks();
  if (at_ != end_ && *at_ == ']') bad_syntax("expected a value after ','");
  return true;
}

bool JsonCursor::next_key(std::string_view& key) {
  skip_blanks();
  token_ = at_;
  if (at_ == end_) bad_syntax("");
  if (*at_ == '}') {
    ++at_;
    first_ = false;
    return false;
  }
  if (!first_) {
    if (*at_ != ',') bad_syntax("expected ',' or '}', found " + quote_text({at_, 1}));
    ++at_;
    skip_blanks();
    token_ = at_;
  }
  first_ = false;
  if (at_ == end_ || *at_ != '"') bad_syntax("expected a key in double quotes");
  key = quoted_string();
  skip_blanks();
  if (at_ == end_ || *at_ != ':') bad_syntax("expected ':' after a key");
  ++at_;
  return true;
}

std::string_view JsonCursor::string() {
  expect(ValueKind::kString);
  return quoted_string();
}

std::string_view JsonCursor::quoted_string() {
  const char* const start = ++at_;
  for (;;) {
    while (end_ - at_ >= 8) {
      const std::size_t plain = plain_bytes(load_word(at_));
      at_ += plain;
      if (plain < 8) break;
    }
    if (at_ == end_) bad_syntax("");
    const auto byte = static_cast<std::uint8_t>(*at_);
    if (byte == '"') return {start, static_cast<std::size_t>(at_++ - start)};
    if (byte == '\\') return string_with_escapes(start);
    if (byte < 0x20) bad_syntax("a control character in a string");
    if (byte < 0x80) {
      ++at_;
      continue;
    }
    const std::size_t length = utf8_sequence({at_, static_cast<std::size_t>(end_ - at_)}, 0, Surrogates::kRefuse);
    if (length == 0) bad_syntax("a string is not UTF-8");
    at_ += length;
  }
}

std::string_view JsonCursor::string_with_escapes(const char* start) {
  scratch_.assign(start, at_);
  while (at_ != end_) {
    const auto byte = static_cast<std::uint8_t>(*at_);
    if (byte == '"') {
      ++at_;
      return scratch_;
    }
    if (byte == '\\') {
      escape();
      continue;
    }
    if (byte < 0x20) bad_syntax("a control character in a string");
    const std::size_t length = utf8_sequence({at_, static_cast<std::size_t>(end_ - at_)}, 0, Surrogates::kRefuse);
    if (length == 0) bad_syntax("a string is not UTF-8");
    scratch_.append(at_, length);
    at_ += length;
  }
  bad_syntax("");
}

void JsonCursor::escape() {
  ++at_;
  if (at_ == end_) bad_syntax("");
  switch (*at_) {
    case '"':
    case '\\':
    case '/':
      scratch_ += *at_;
      break;
    case 'b':
      scratch_ += '\b';
      break;
    case 'f':
      scratch_ += '\f';
      break;
    case 'n':
      scratch_ += '\n';
      break;
    case 'r':
      scratch_ += '\r';
      break;
    case 't':
      scratch_ += '\t';
      break;
    case 'u': {
      ++at_;
      char32_t code_point = hex_unit();
      if (code_point >= 0xD800 && code_point < 0xDC00 && end_ - at_ >= 2 && at_[0] == '\\' && at_[1] == 'u') {
        const char* const second = at_;
        at_ += 2;
        const char32_t low = hex_unit();
        if (low >= 0xDC00 && low < 0xE000) {
          code_point = 0x10000 + ((code_point - 0xD800) << 10) + (low - 0xDC00);
        } else {
          at_ = second;
        }
      }
      append_utf8(code_point, scratch_);
      return;
    }
    default:
      bad_syntax("unknown escape " + quote_text({at_, 1}) + " in a string");
  }
  ++at_;
}

char32_t JsonCursor::hex_unit() {
  char32_t unit = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    if (at_ == end_) bad_syntax("");
    const char c = *at_;
    unsigned digit = 0;
    if (is_digit(c)) {
      digit = static_cast<unsigned>(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      digit = static_cast<unsigned>(c - 'a') + 10;
    } else if (c >= 'A' && c <= 'F') {
      digit = static_cast<unsigned>(c - 'A') + 10;
    } else {
      bad_syntax("expected four hex digits after \\u");
    }
    unit = unit * 16 + digit;
  }
  return unit;
}

std::string_view JsonCursor::number() {
  expect(ValueKind::kNumber);
  const char* const start = at_;
  const auto digits = [this] {
    if (at_ == end_ || !is_digit(*at_)) bad_syntax("expected a digit");
    while (at_ != end_ && is_digit(*at_)) ++at_;
  };
  if (*at_ == '-') ++at_;
  if (at_ != end_ && *at_ == '0') {
    ++at_;
    if (at_ != end_ && is_digit(*at_)) bad_syntax("a number with a leading zero");
  } else {
    digits();
  }
  integral_ = true;
  if (at_ != end_ && *at_ == '.') {
    integral_ = false;
    ++at_;
    digits();
  }
  if (at_ != end_ && (*at_ == 'e' || *at_ == 'E')) {
    integral_ = false;
    ++at_;
    if (at_ != end_ && (*at_ == '+' || *at_ == '-')) ++at_;
    digits();
  }
  return {start, static_cast<std::size_t>(at_ - start)};
}

std::string_view JsonCursor::integer_token() {
  const std::string_view text = number();
  if (!integral_) fail("expected an integer, found " + quote_text(text));
  return text;
}

std::int64_t JsonCursor::integer() {
  const std::string_view text = integer_token();
  std::int64_t value = 0;
  if (std::from_chars(text.data(), text.data() + text.size(), value).ec != std::errc()) {
    fail("number " + quote_text(text) + " is out of range");
  }
  return value;
}

std::string JsonCursor::integer_text() {
  const std::string_view text = integer_token();
  return std::string(text == "-0" ? std::string_view("0") : text);
}

bool JsonCursor::boolean() {
  expect(ValueKind::kBool);
  const bool value = *at_ == 't';
  word(value ? "true" : "false");
  return value;
}

void JsonCursor::null() {
  expect(ValueKind::kNull);
  word("null");
}

void JsonCursor::word(std::string_view text) {
  for (const char c : text) {
    if (at_ == end_ || *at_ != c) bad_syntax("expected '" + std::string(text) + "'");
    ++at_;
  }
}

void JsonCursor::finish() {
  skip_blanks();
  if (at_ != end_) bad_syntax("something follows the end of the document");
}

}  // namespace torchsnapshot
