// JSON for machines, written front to back.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "torchsnapshot/inspect.h"

namespace torchsnapshot::cli {

/// Values are separated and indented as they come; begin and end are the caller's. Numbers that JSON lacks are the
/// strings "NaN", "Infinity" and "-Infinity"; a complex number is [re, im].
class Json {
 public:
  Json& begin_object() { return begin('{'); }
  Json& end_object() { return end('}'); }
  Json& begin_array() { return begin('['); }
  Json& end_array() { return end(']'); }
  Json& key(std::string_view name);

  Json& value(std::string_view text);
  Json& value(const char* text) { return value(std::string_view(text)); }
  Json& value(const std::string& text) { return value(std::string_view(text)); }
  Json& value(bool flag) { return raw(flag ? "true" : "false"); }
  Json& value(double number);
  template <typename T>
  requires(std::is_integral_v<T>) Json& value(T number) { return raw(std::to_string(number)); }
  Json& value(const Number& number);
  Json& null() { return raw("null"); }
  template <typename T>
  Json& value(const std::optional<T>& maybe) {
    return maybe ? value(*maybe) : null();
  }
  template <typename T>
  Json& value(const std::vector<T>& items) {
    constexpr bool kOnOneLine = !std::is_same_v<T, std::string>;
    begin_array();
    one_line_ = kOnOneLine;
    for (const T& item : items) value(item);
    end_array();
    one_line_ = false;
    return *this;
  }
  template <typename T>
  Json& member(std::string_view name, const T& content) {
    return key(name).value(content);
  }

  /// The text, with a newline. Leaves the writer empty.
  std::string take();

 private:
  Json& begin(char bracket);
  Json& end(char bracket);
  Json& raw(std::string_view text);
  void separate();
  void indent();
  void quote(std::string_view text);

  std::string out_;
  std::vector<bool> empty_;  // for each open bracket: nothing in it yet
  bool after_key_ = false;
  bool one_line_ = false;  // within a list of numbers
};

}  // namespace torchsnapshot::cli
