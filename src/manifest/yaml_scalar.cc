#include "manifest/yaml_scalar.h"

#include <algorithm>
#include <array>
#include <cstddef>

namespace torchsnapshot {
namespace {

constexpr std::string_view kDigits = "0123456789";
constexpr std::string_view kDigitsAndGaps = "0123456789_";

template <std::size_t N>
bool one_of(std::string_view text, const std::array<std::string_view, N>& words) noexcept {
  return std::find(words.begin(), words.end(), text) != words.end();
}

bool all_of(std::string_view text, std::string_view allowed) noexcept {
  return text.find_first_not_of(allowed) == std::string_view::npos;
}

bool is_digit(char c) noexcept {
  return c >= '0' && c <= '9';
}

/// ":59" one or more times; hours, minutes and seconds of a number in base 60.
bool is_base60_tail(std::string_view text) noexcept {
  if (text.empty()) return false;
  while (!text.empty()) {
    if (text.front() != ':') return false;
    text.remove_prefix(1);
    const std::size_t end = std::min(text.find_first_not_of(kDigits), text.size());
    if (end == 0 || end > 2 || (end == 2 && text[0] > '5')) return false;
    text.remove_prefix(end);
  }
  return true;
}

/// An integer without its sign, not in canonical form.
bool is_other_integer(std::string_view text) noexcept {
  if (text.starts_with("0b")) return text.size() > 2 && all_of(text.substr(2), "01_");
  if (text.starts_with("0x")) return text.size() > 2 && all_of(text.substr(2), "0123456789abcdefABCDEF_");
  if (text.size() > 1 && text[0] == '0') return all_of(text.substr(1), "01234567_");
  if (!is_digit(text[0])) return false;
  const std::size_t end = std::min(text.find_first_not_of(kDigitsAndGaps), text.size());
  return end == text.size() || (text[0] != '0' && is_base60_tail(text.substr(end)));
}

bool is_exponent(std::string_view text) noexcept {
  return text.size() > 2 && (text[0] == 'e' || text[0] == 'E') && (text[1] == '+' || text[1] == '-') &&
         all_of(text.substr(2), kDigits);
}

/// A float; `sign` is already cut off `text`.
bool is_float(std::string_view text, bool has_sign) noexcept {
  if (one_of<3>(text, {".inf", ".Inf", ".INF"})) return true;
  if (!has_sign && one_of<3>(text, {".nan", ".NaN", ".NAN"})) return true;
  const std::size_t point = text.find('.');
  if (point == std::string_view::npos) return false;
  std::string_view whole = text.substr(0, point);
  const std::string_view rest = text.substr(point + 1);
  const std::size_t end = std::min(rest.find_first_not_of(kDigitsAndGaps), rest.size());
  const bool ends_well = end == rest.size() || is_exponent(rest.substr(end));
  if (whole.empty()) return !has_sign && end > 0 && is_digit(rest[0]) && ends_well;
  if (!is_digit(whole[0])) return false;
  const std::size_t whole_end = std::min(whole.find_first_not_of(kDigitsAndGaps), whole.size());
  if (whole_end == whole.size()) return ends_well;
  return is_base60_tail(whole.substr(whole_end)) && end == rest.size();
}

/// "2026-11-23", and whatever begins like a date with a time.
bool is_date(std::string_view text) noexcept {
  const auto digits = [&text](std::size_t least, std::size_t most) {
    const std::size_t end = std::min(text.find_first_not_of(kDigits), text.size());
    if (end < least || end > most) return false;
    text.remove_prefix(end);
    return true;
  };
  const auto mark = [&text](std::string_view marks) {
    if (text.empty() || marks.find(text.front()) == std::string_view::npos) return false;
    text.remove_prefix(1);
    return true;
  };
  if (!digits(4, 4) || !mark("-") || !digits(1, 2) || !mark("-") || !digits(1, 2)) return false;
  if (text.empty()) return true;
  return mark("Tt \t") && all_of(text, "0123456789:.+-Z \t");
}

}  // namespace

ScalarKind resolve_plain_scalar(std::string_view text) noexcept {
  if (text.empty() || one_of<4>(text, {"~", "null", "Null", "NULL"})) return ScalarKind::kNull;
  if (one_of<18>(text, {"yes", "Yes", "YES", "no", "No", "NO", "true", "True", "TRUE", "false", "False", "FALSE", "on",
                        "On", "ON", "off", "Off", "OFF"})) {
    return ScalarKind::kBool;
  }
  if (text == "<<" || text == "=") return ScalarKind::kOther;
  std::string_view number = text;
  const bool has_sign = text[0] == '-' || text[0] == '+';
  if (has_sign) number.remove_prefix(1);
  if (number.empty()) return ScalarKind::kString;
  if (text[0] != '+' && all_of(number, kDigits) && (number[0] != '0' || text == "0")) return ScalarKind::kInteger;
  if (is_other_integer(number) || is_float(number, has_sign) || is_date(text)) return ScalarKind::kOther;
  return ScalarKind::kString;
}

}  // namespace torchsnapshot
