#include "net/xml.h"

#include <algorithm>
#include <charconv>
#include <cstdint>

#include "core/text.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr int kMaxDepth = 64;
constexpr std::string_view kBlank = " \t\r\n";

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {
    if (text_.starts_with("\xef\xbb\xbf")) at_ = 3;
  }

  XmlElement document() {
    skip_misc();
    XmlElement root = element(0);
    skip_misc();
    if (at_ != text_.size()) fail("something follows the root element");
    return root;
  }

 private:
  [[noreturn]] void fail(std::string_view why) const {
    throw Error(ErrorCode::kCorrupt, "malformed XML at byte " + std::to_string(at_) + ": " + std::string(why));
  }

  [[nodiscard]] bool looking_at(std::string_view wanted) const { return text_.substr(at_).starts_with(wanted); }

  void skip_blank() { at_ = std::min(text_.find_first_not_of(kBlank, at_), text_.size()); }

  void skip_past(std::string_view end) {
    const auto found = text_.find(end, at_);
    if (found == std::string_view::npos) fail("'" + std::string(end) + "' is missing");
    at_ = found + end.size();
  }

  /// Comments and processing instructions; true if there was one.
  bool skip_markup() {
    if (looking_at("<!--")) {
      skip_past("-->");
    } else if (looking_at("<?")) {
      skip_past("?>");
    } else {
      return false;
    }
    return true;
  }

  void skip_misc() {
    do skip_blank();
    while (skip_markup());
  }

  std::string_view name() {
    const std::size_t end = std::min(text_.find_first_of(" \t\r\n/>=<&", at_), text_.size());
    if (end == at_) fail("a name is missing");
    const std::string_view whole = text_.substr(at_, end - at_);
    at_ = end;
    return whole;
  }

  /// Skips attributes; true if the tag closed itself.
  bool end_of_tag() {
    for (;;) {
      skip_blank();
      if (looking_at("/>")) {
        at_ += 2;
        return true;
      }
      if (looking_at(">")) {
        ++at_;
        return false;
      }
      name();
      skip_blank();
      if (!looking_at("=")) fail("an attribute has no value");
      ++at_;
      skip_blank();
      if (!looking_at("\"") && !looking_at("'")) fail("the value of an attribute is not quoted");
      const char quote = text_[at_++];
      skip_past(std::string_view(&quote, 1));
    }
  }

  XmlElement element(int depth) {
    if (depth == kMaxDepth) fail("nested too deeply");
    if (!looking_at("<") || looking_at("<!")) fail("an element is expected");
    ++at_;
    const std::string_view tag = name();
    XmlElement result;
    const auto colon = tag.rfind(':');
    result.name = colon == std::string_view::npos ? tag : tag.substr(colon + 1);
    if (end_of_tag()) return result;
    for (;;) {
      if (at_ == text_.size()) fail("the document is cut off");
      if (looking_at("</")) {
        at_ += 2;
        if (name() != tag) fail("the end tag does not match <" + std::string(tag) + ">");
        skip_blank();
        if (!looking_at(">")) fail("'>' is missing");
        ++at_;
        return result;
      }
      if (looking_at("<![CDATA[")) {
        const std::size_t begin = at_ + 9;
        skip_past("]]>");
        result.text += text_.substr(begin, at_ - 3 - begin);
      } else if (looking_at("<")) {
        if (!skip_markup()) result.children.push_back(element(depth + 1));
      } else {
        character_data(result.text);
      }
    }
  }

  void character_data(std::string& out) {
    while (at_ < text_.size() && text_[at_] != '<') {
      if (text_[at_] == '&') {
        entity(out);
        continue;
      }
      const std::size_t end = std::min(text_.find_first_of("<&", at_), text_.size());
      out += text_.substr(at_, end - at_);
      at_ = end;
    }
  }

  void entity(std::string& out) {
    const auto end = text_.find(';', at_);
    if (end == std::string_view::npos || end - at_ > 12) fail("an entity has no end");
    const std::string_view body = text_.substr(at_ + 1, end - at_ - 1);
    if (body == "amp") {
      out += '&';
    } else if (body == "lt") {
      out += '<';
    } else if (body == "gt") {
      out += '>';
    } else if (body == "quot") {
      out += '"';
    } else if (body == "apos") {
      out += '\'';
    } else if (body.starts_with('#')) {
      const bool hex = body.starts_with("#x");
      const std::string_view digits = body.substr(hex ? 2 : 1);
      std::uint32_t code = 0;
      const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, hex ? 16 : 10);
      if (error != std::errc() || stop != digits.data() + digits.size() || code == 0 || code > 0x10ffff ||
          (code >= 0xd800 && code <= 0xdfff)) {
        fail("a character reference names no character");
      }
      append_utf8(static_cast<char32_t>(code), out);
    } else {
      fail("an unknown entity");
    }
    at_ = end + 1;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

const XmlElement* XmlElement::child(std::string_view child_name) const noexcept {
  const auto found =
      std::find_if(children.begin(), children.end(), [&](const XmlElement& e) { return e.name == child_name; });
  return found == children.end() ? nullptr : &*found;
}

std::string_view XmlElement::child_text(std::string_view child_name) const noexcept {
  const XmlElement* found = child(child_name);
  return found == nullptr ? std::string_view() : found->text;
}

XmlElement parse_xml(std::string_view text) {
  return Parser(text).document();
}

std::string xml_escape(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\t':
      case '\n':
      case '\r':
        escaped += "&#" + std::to_string(static_cast<int>(c)) + ";";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          throw Error(ErrorCode::kInvalidArgument, "a control character can't be part of XML");
        }
        escaped += c;
    }
  }
  return escaped;
}

}  // namespace torchsnapshot
