#include "net/json.h"

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "core/text.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr int kMaxDepth = 64;

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  JsonValue document() {
    JsonValue result = value(0);
    skip_blank();
    if (at_ != text_.size()) fail("something follows the value");
    return result;
  }

 private:
  [[noreturn]] void fail(std::string_view why) const {
    throw Error(ErrorCode::kCorrupt, "malformed JSON at byte " + std::to_string(at_) + ": " + std::string(why));
  }

  void skip_blank() { at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size()); }

  bool take(char wanted) {
    skip_blank();
    if (at_ == text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  void need(char wanted) {
    if (!take(wanted)) fail("'" + std::string(1, wanted) + "' is expected");
  }

  JsonValue value(int depth) {
    if (depth == kMaxDepth) fail("nested too deeply");
    skip_blank();
    if (at_ == text_.size()) fail("a value is expected");
    JsonValue result;
    if (take('{')) {
      result.kind = JsonValue::Kind::kObject;
      if (take('}')) return result;
      do {
        skip_blank();
        std::string name = string();
        need(':');
        result.fields.insert_or_assign(std::move(name), value(depth + 1));
      } while (take(','));
      need('}');
    } else if (take('[')) {
      result.kind = JsonValue::Kind::kArray;
      if (take(']')) return result;
      do result.items.push_back(value(depth + 1));
      while (take(','));
      need(']');
    } else if (text_[at_] == '"') {
      result.kind = JsonValue::Kind::kString;
      result.text = string();
    } else if (word("true")) {
      result.kind = JsonValue::Kind::kBool;
      result.boolean = true;
    } else if (word("false")) {
      result.kind = JsonValue::Kind::kBool;
    } else if (!word("null")) {
      result.kind = JsonValue::Kind::kNumber;
      result.text = number();
    }
    return result;
  }

  bool word(std::string_view wanted) {
    if (!text_.substr(at_).starts_with(wanted)) return false;
    at_ += wanted.size();
    return true;
  }

  std::string number() {
    const std::size_t end = std::min(text_.find_first_not_of("+-.0123456789eE", at_), text_.size());
    const std::string_view digits = text_.substr(at_, end - at_);
    double parsed = 0;
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), parsed);
    if (digits.empty() || digits.front() == '+' || error == std::errc::invalid_argument ||
        stop != digits.data() + digits.size()) {
      fail("a value is expected");
    }
    at_ = end;
    return std::string(digits);
  }

  std::uint32_t hex4() {
    std::uint32_t code = 0;
    const std::string_view digits = text_.substr(at_, 4);
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (digits.size() != 4 || error != std::errc() || stop != digits.data() + 4) fail("\\u needs four hex digits");
    at_ += 4;
    return code;
  }

  std::string string() {
    if (at_ == text_.size() || text_[at_] != '"') fail("a string is expected");
    ++at_;
    std::string out;
    for (;;) {
      const std::size_t end = text_.find_first_of("\"\\", at_);
      if (end == std::string_view::npos) fail("a string has no end");
      out += text_.substr(at_, end - at_);
      at_ = end + 1;
      if (text_[end] == '"') return out;
      escape(out);
    }
  }

  void escape(std::string& out) {
    constexpr std::string_view kFrom = "\"\\/bfnrt";
    constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
    if (at_ == text_.size()) fail("a string has no end");
    const char c = text_[at_++];
    if (c == 'u') {
      std::uint32_t code = hex4();
      if (code >= 0xd800 && code < 0xdc00 && word("\\u")) {
        const std::uint32_t low = hex4();
        if (low < 0xdc00 || low > 0xdfff) fail("a surrogate stands alone");
        code = 0x10000 + ((code - 0xd800) << 10U) + (low - 0xdc00);
      }
      append_utf8(static_cast<char32_t>(code), out);
      return;
    }
    const auto index = kFrom.find(c);
    if (index == std::string_view::npos) fail("an unknown escape");
    out += kTo[index];
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

const JsonValue* JsonValue::field(std::string_view name) const noexcept {
  const auto found = fields.find(name);
  return found == fields.end() ? nullptr : &found->second;
}

std::string_view JsonValue::field_text(std::string_view name) const noexcept {
  const JsonValue* found = field(name);
  if (found == nullptr || (found->kind != Kind::kString && found->kind != Kind::kNumber)) return {};
  return found->text;
}

std::optional<std::int64_t> JsonValue::field_integer(std::string_view name) const noexcept {
  std::string_view digits = field_text(name);
  digits = digits.substr(0, digits.find('.'));
  std::int64_t number = 0;
  const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (digits.empty() || error != std::errc() || stop != digits.data() + digits.size()) return std::nullopt;
  return number;
}

JsonValue parse_json(std::string_view text) {
  return Parser(text).document();
}

std::string json_quote(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
      quoted += escaped;
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

}  // namespace torchsnapshot
