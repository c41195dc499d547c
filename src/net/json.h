// JSON as token servers and the GCS JSON API speak it: read as a tree, written from strings. (The manifest has a reader
// of its own that makes no tree.)
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace torchsnapshot {

struct JsonValue {
  enum class Kind : std::uint8_t { kNull, kBool, kNumber, kString, kArray, kObject };
  Kind kind = Kind::kNull;
  bool boolean = false;
  std::string text;  ///< of a string decoded, of a number as it was written
  std::vector<JsonValue> items;
  std::map<std::string, JsonValue, std::less<>> fields;

  /// The field of an object; null when there is none, or this is no object.
  [[nodiscard]] const JsonValue* field(std::string_view name) const noexcept;
  /// The text of a string or number field, or "".
  [[nodiscard]] std::string_view field_text(std::string_view name) const noexcept;
  /// A number field as an integer (a fraction is dropped), or a string that holds one; nothing otherwise.
  [[nodiscard]] std::optional<std::int64_t> field_integer(std::string_view name) const noexcept;
};

/// Throws Error(kCorrupt) for what is malformed or nested deeper than 64 levels. Messages show no content: it may be
/// a secret. Of equal fields the last one counts.
JsonValue parse_json(std::string_view text);

/// A text in quotes, escaped.
std::string json_quote(std::string_view text);

}  // namespace torchsnapshot
