// YAML metadata, as versions before JSON wrote it with PyYAML.
//
// yaml-cpp reports events; they are kept as flat tokens, over which a cursor walks as over JSON. So there is no tree of
// nodes, and an alias is a jump back to the tokens of its anchor. Three things bound what hostile text can cost:
// the depth of nesting, how much the parser may swallow without an event (it queues tokens inside of flow collections),
// and how many tokens aliases replay.
#include "manifest/readers.h"
#include "torchsnapshot/error.h"

#ifdef TORCHSNAPSHOT_HAVE_YAML

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <istream>
#include <limits>
#include <streambuf>
#include <string>
#include <vector>

#include "core/text.h"
#include "manifest/metadata_reader.h"
#include "manifest/yaml_scalar.h"

namespace torchsnapshot {
namespace {

constexpr std::size_t kMaxDepth = 64;
/// Flow indicators that may be read without an event. Each becomes a token of about 100 bytes in yaml-cpp's queue.
constexpr std::size_t kMaxQueuedIndicators = 1U << 19;
/// Tokens that aliases may replay, in proportion to the tokens of the document.
constexpr std::size_t kMaxReplay = 4;

struct Token {
  enum class Type : std::uint8_t { kScalar, kAlias, kBeginList, kBeginMap, kEnd };
  Type type = Type::kEnd;
  ScalarKind scalar = ScalarKind::kNull;
  std::uint32_t line = 0;
  std::uint32_t column = 0;
  std::size_t begin = 0;  ///< of a scalar, its text in Tokens::text; of an alias, the token that it stands for
  std::size_t size = 0;   ///< of a scalar, its text; of a list or map, the number of tokens up to its end
};

struct Tokens {
  std::vector<Token> items;
  std::string text;
};

/// Feeds the text to the parser, and stops it when it takes too much without giving an event.
class MeteredBuffer : public std::streambuf {
 public:
  explicit MeteredBuffer(std::string_view text) : text_(text) {}

  void event() { indicators_ = 0; }
  [[nodiscard]] bool stopped() const { return stopped_; }

 protected:
  int_type underflow() override {
    if (at_ == text_.size() || stopped_) return traits_type::eof();
    const std::string_view block = text_.substr(at_, kBlockBytes);
    at_ += block.size();
    indicators_ += static_cast<std::size_t>(std::count_if(block.begin(), block.end(), [](char c) {
      return c == '[' || c == '{' || c == ']' || c == '}' || c == ',' || c == ':' || c == '?' || c == '-';
    }));
    if (indicators_ > kMaxQueuedIndicators) {
      stopped_ = true;
      return traits_type::eof();
    }
    // The parser only reads: streambuf merely has no const interface.
    char* const data = const_cast<char*>(block.data());
    setg(data, data, data + block.size());
    return traits_type::to_int_type(block.front());
  }

 private:
  static constexpr std::size_t kBlockBytes = 2048;

  std::string_view text_;
  std::size_t at_ = 0;
  std::size_t indicators_ = 0;
  bool stopped_ = false;
};

class Recorder : public YAML::EventHandler {
 public:
  Recorder(Tokens& tokens, MeteredBuffer& buffer) : tokens_(tokens), buffer_(buffer) {}

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override { scalar(mark, anchor, ScalarKind::kNull, ""); }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const std::size_t target = anchor < anchors_.size() ? anchors_[anchor] : kNoToken;
    if (target == kNoToken || std::find(open_.begin(), open_.end(), target) != open_.end()) {
      throw error(mark, "an alias refers to what it is part of");
    }
    add(mark, Token::Type::kAlias).begin = target;
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    if (tag != "?" && tag != "!" && !tag.empty()) throw error(mark, "tag " + quote_text(tag) + " is not supported");
    scalar(mark, anchor, tag == "?" ? resolve_plain_scalar(value) : ScalarKind::kString, value);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, Token::Type::kBeginList);
  }
  void OnSequenceEnd() override { close(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, Token::Type::kBeginMap);
  }
  void OnMapEnd() override { close(); }

 private:
  static constexpr std::size_t kNoToken = std::numeric_limits<std::size_t>::max();

  static Error error(const YAML::Mark& mark, std::string_view what) {
    return error_at(static_cast<std::size_t>(mark.line) + 1, static_cast<std::size_t>(mark.column) + 1, what);
  }

  Token& add(const YAML::Mark& mark, Token::Type type) {
    buffer_.event();
    Token& token = tokens_.items.emplace_back();
    token.type = type;
    token.line = static_cast<std::uint32_t>(mark.line) + 1;
    token.column = static_cast<std::uint32_t>(mark.column) + 1;
    return token;
  }

  void remember(YAML::anchor_t anchor) {
    if (anchor == 0) return;
    if (anchor >= anchors_.size()) anchors_.resize(anchor + 1, kNoToken);
    anchors_[anchor] = tokens_.items.size() - 1;
  }

  void scalar(const YAML::Mark& mark, YAML::anchor_t anchor, ScalarKind kind, const std::string& value) {
    Token& token = add(mark, Token::Type::kScalar);
    token.scalar = kind;
    token.begin = tokens_.text.size();
    append_repaired(value);
    token.size = tokens_.text.size() - token.begin;
    remember(anchor);
  }

  /// yaml-cpp 0.7 turns the escapes \N and \_ into a bare byte 0x85 or 0xA0, not into UTF-8. The text itself is UTF-8,
  /// so that a byte where no sequence begins can only come from there.
  void append_repaired(const std::string& value) {
    for (std::size_t at = 0; at < value.size();) {
      const std::size_t length = utf8_sequence(value, at, Surrogates::kAccept);
      if (length == 0) append_utf8(static_cast<std::uint8_t>(value[at]), tokens_.text);
      tokens_.text.append(value, at, length);
      at += std::max<std::size_t>(length, 1);
    }
  }

  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, Token::Type type) {
    if (tag != "?" && tag != "!" && !tag.empty()) throw error(mark, "tag " + quote_text(tag) + " is not supported");
    if (open_.size() == kMaxDepth) throw error(mark, "nested too deeply");
    add(mark, type);
    remember(anchor);
    open_.push_back(tokens_.items.size() - 1);
  }

  void close() {
    buffer_.event();
    const std::size_t begin = open_.back();
    open_.pop_back();
    Token end;
    end.line = tokens_.items[begin].line;
    end.column = tokens_.items[begin].column;
    tokens_.items.push_back(end);
    tokens_.items[begin].size = tokens_.items.size() - begin;
  }

  Tokens& tokens_;
  MeteredBuffer& buffer_;
  std::vector<std::size_t> anchors_;  // by anchor id: its token
  std::vector<std::size_t> open_;
};

/// A Cursor (cursor.h) over tokens.
class YamlCursor {
 public:
  explicit YamlCursor(const Tokens& tokens) : tokens_(tokens), replay_left_(kMaxReplay * tokens.items.size() + 1) {}

  ValueKind peek() {
    const Token& token = current();
    switch (token.type) {
      case Token::Type::kBeginMap:
        return ValueKind::kObject;
      case Token::Type::kBeginList:
        return ValueKind::kArray;
      default:
        break;
    }
    switch (token.scalar) {
      case ScalarKind::kString:
        return ValueKind::kString;
      case ScalarKind::kInteger:
        return ValueKind::kNumber;
      case ScalarKind::kBool:
        return ValueKind::kBool;
      case ScalarKind::kNull:
        return ValueKind::kNull;
      case ScalarKind::kOther:
        break;
    }
    return ValueKind::kOther;
  }

  void begin_object() {
    expect(ValueKind::kObject);
    ++at_;
  }

  void begin_array() {
    expect(ValueKind::kArray);
    ++at_;
  }

  bool next_key(std::string_view& key) {
    if (!next_element()) return false;
    key = string();
    return true;
  }

  bool next_element() {
    leave_alias();
    if (tokens_.items[at_].type != Token::Type::kEnd) return true;
    take();
    return false;
  }

  std::string_view string() {
    expect(ValueKind::kString);
    return text_of(take());
  }

  std::int64_t integer() {
    expect(ValueKind::kNumber);
    const std::string_view text = text_of(take());
    std::int64_t value = 0;
    if (std::from_chars(text.data(), text.data() + text.size(), value).ec != std::errc()) {
      fail("number " + quote_text(text) + " is out of range");
    }
    return value;
  }

  std::string integer_text() {
    expect(ValueKind::kNumber);
    return std::string(text_of(take()));
  }

  bool boolean() {
    expect(ValueKind::kBool);
    const std::string_view text = text_of(take());
    return text.front() == 't' || text.front() == 'T' || text.front() == 'y' || text.front() == 'Y' || text == "on" ||
           text == "On" || text == "ON";
  }

  void null() {
    expect(ValueKind::kNull);
    take();
  }

  void finish() {
    leave_alias();
    if (at_ != tokens_.items.size()) fail("something follows the end of the document");
  }

  [[noreturn]] void fail(std::string_view what, ErrorCode code = ErrorCode::kCorrupt) const {
    const Token& token = tokens_.items[std::min(last_, tokens_.items.size() - 1)];
    throw error_at(token.line, token.column, what, code);
  }

 private:
  struct Return {
    std::size_t end;   ///< one past the last token of the anchor
    std::size_t back;  ///< where the alias is left to
  };

  /// Steps into aliases, and back out of those that are read to their end.
  const Token& current() {
    leave_alias();
    while (tokens_.items[at_].type == Token::Type::kAlias) {
      const std::size_t target = tokens_.items[at_].begin;
      const Token& anchored = tokens_.items[target];
      const std::size_t size = anchored.type == Token::Type::kScalar ? 1 : anchored.size;
      last_ = at_;
      if (size > replay_left_) fail("aliases expand to too much");
      replay_left_ -= size;
      returns_.push_back({target + size, at_ + 1});
      at_ = target;
    }
    last_ = at_;
    return tokens_.items[at_];
  }

  void leave_alias() {
    while (!returns_.empty() && at_ == returns_.back().end) {
      at_ = returns_.back().back;
      returns_.pop_back();
    }
  }

  void expect(ValueKind wanted) {
    const ValueKind found = peek();
    if (found != wanted) {
      fail("expected " + std::string(kind_name(wanted)) + ", found " + std::string(kind_name(found)));
    }
  }

  const Token& take() {
    last_ = at_;
    return tokens_.items[at_++];
  }

  std::string_view text_of(const Token& token) const {
    return std::string_view(tokens_.text).substr(token.begin, token.size);
  }

  const Tokens& tokens_;
  std::vector<Return> returns_;
  std::size_t at_ = 0;
  std::size_t last_ = 0;
  std::size_t replay_left_;
};

void check_text(std::string_view text) {
  // Else yaml-cpp would guess at UTF-16 and UTF-32.
  if (std::memchr(text.data(), 0, text.size()) != nullptr) throw Error(ErrorCode::kCorrupt, "it is no text in UTF-8");
  for (std::size_t at = 0; at < text.size();) {
    std::uint64_t word = 0;
    if (text.size() - at >= sizeof word) {
      std::memcpy(&word, text.data() + at, sizeof word);
      if ((word & 0x8080808080808080ULL) == 0) {
        at += sizeof word;
        continue;
      }
    }
    const std::size_t length = utf8_sequence(text, at, Surrogates::kRefuse);
    if (length == 0) throw Error(ErrorCode::kCorrupt, "it is no text in UTF-8");
    at += length;
  }
}

Tokens tokenize(std::string_view text) {
  check_text(text);
  Tokens tokens;
  MeteredBuffer buffer(text);
  std::istream stream(&buffer);
  const auto too_much = [] {
    return Error(ErrorCode::kCorrupt, "not valid YAML metadata: nested too deeply, or a value of absurd length");
  };
  try {
    YAML::Parser parser(stream);
    Recorder recorder(tokens, buffer);
    parser.HandleNextDocument(recorder);
    if (buffer.stopped()) throw too_much();
    const std::size_t count = tokens.items.size();
    if (parser.HandleNextDocument(recorder) || tokens.items.size() != count) {
      throw Error(ErrorCode::kCorrupt, "not valid YAML metadata: a second document follows");
    }
  } catch (const YAML::Exception& error) {
    if (buffer.stopped()) throw too_much();
    throw error_at(static_cast<std::size_t>(error.mark.line) + 1, static_cast<std::size_t>(error.mark.column) + 1,
                   "not valid YAML: " + error.msg);
  }
  if (tokens.items.empty()) throw Error(ErrorCode::kCorrupt, "it has no content");
  return tokens;
}

}  // namespace

SnapshotMetadata read_yaml_metadata(std::string_view text) {
  const Tokens tokens = tokenize(text);
  YamlCursor cursor(tokens);
  return MetadataReader<YamlCursor>(cursor).read();
}

}  // namespace torchsnapshot

#else

namespace torchsnapshot {

SnapshotMetadata read_yaml_metadata(std::string_view) {
  throw Error(ErrorCode::kUnsupported,
              "it is not JSON. If it is the YAML of a very old version, this build can't read it: install yaml-cpp "
              "(apt-get install libyaml-cpp-dev) and build again");
}

}  // namespace torchsnapshot

#endif
