// A strict JSON reader (RFC 8259, except that lone surrogate escapes are accepted) that pulls values out of the text
// one by one: no tree, no recursion, no allocation but for strings with escapes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "manifest/cursor.h"

namespace torchsnapshot {

/// A Cursor (cursor.h) over a text that outlives it.
class JsonCursor {
 public:
  explicit JsonCursor(std::string_view text) noexcept
      : begin_(text.data()), end_(text.data() + text.size()), at_(begin_), token_(begin_) {}

  ValueKind peek();
  void begin_object() { open(ValueKind::kObject); }
  void begin_array() { open(ValueKind::kArray); }
  bool next_key(std::string_view& key);
  bool next_element();
  std::string_view string();
  std::int64_t integer();
  std::string integer_text();
  bool boolean();
  void null();
  void finish();
  [[noreturn]] void fail(std::string_view what, ErrorCode code = ErrorCode::kCorrupt) const;

  /// Any number, as it stands in the text.
  std::string_view number();

 private:
  void open(ValueKind kind);
  void skip_blanks() noexcept {
    if (at_ == end_ || static_cast<unsigned char>(*at_) > ' ') return;
    skip_run_of_blanks();
  }
  void skip_run_of_blanks() noexcept;
  void expect(ValueKind wanted);
  void word(std::string_view text);
  std::string_view integer_token();
  std::string_view quoted_string();
  std::string_view string_with_escapes(const char* start);
  void escape();
  char32_t hex_unit();
  [[noreturn]] void bad_syntax(std::string_view what) const;
  [[noreturn]] void fail_at(const char* place, const std::string& what, ErrorCode code) const;

  const char* begin_;
  const char* end_;
  const char* at_;         // next byte to read
  const char* token_;      // start of what was read last, for messages
  bool integral_ = false;  // number() read no fraction and no exponent
  bool first_ = false;     // the innermost object or array has just been opened
  std::string scratch_;    // string() or key with escapes
};

}  // namespace torchsnapshot
