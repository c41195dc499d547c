// What the JSON and the YAML reader give to the reader of entries (metadata_reader.h).
//
// A Cursor walks over a document from front to back, once:
//   ValueKind peek()                    kind of the value that comes next
//   void begin_object(), begin_array()  step into the value
//   bool next_key(std::string_view&)    the next member's key, valid until the next call; false: the object is done
//   bool next_element()                 false: the array is done
//   std::string_view string()           valid until the next call
//   std::int64_t integer(), std::string integer_text() (canonical decimal of any size), bool boolean(), void null()
//   void finish()                       checks that nothing follows
//   [[noreturn]] void fail(text, code)  throws with the place of what was read last
// Every call throws Error(kCorrupt) that names line and column when the next thing is something else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "torchsnapshot/error.h"

namespace torchsnapshot {

enum class ValueKind : std::uint8_t { kObject, kArray, kString, kNumber, kBool, kNull, kOther };

constexpr std::string_view kind_name(ValueKind kind) noexcept {
  switch (kind) {
    case ValueKind::kObject:
      return "an object";
    case ValueKind::kArray:
      return "a list";
    case ValueKind::kString:
      return "a string";
    case ValueKind::kNumber:
      return "a number";
    case ValueKind::kBool:
      return "a boolean";
    case ValueKind::kNull:
      return "null";
    case ValueKind::kOther:
      break;
  }
  return "a value of another type";
}

/// "line 3, column 7: what"; both count from 1, columns in bytes.
inline Error error_at(std::size_t line, std::size_t column, std::string_view what,
                      ErrorCode code = ErrorCode::kCorrupt) {
  return {code, "line " + std::to_string(line) + ", column " + std::to_string(column) + ": " + std::string(what)};
}

}  // namespace torchsnapshot
