#include "net/time_text.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "net/encoding.h"

namespace torchsnapshot {
namespace {

using std::chrono::days;
using std::chrono::hours;
using std::chrono::minutes;
using std::chrono::seconds;

/// Reads exactly `count` digits at the front of `text` and takes them off.
std::optional<int> take_digits(std::string_view& text, std::size_t count) {
  if (text.size() < count) return std::nullopt;
  int value = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (text[i] < '0' || text[i] > '9') return std::nullopt;
    value = value * 10 + (text[i] - '0');
  }
  text.remove_prefix(count);
  return value;
}

bool take(std::string_view& text, std::string_view wanted) {
  if (!text.starts_with(wanted)) return false;
  text.remove_prefix(wanted.size());
  return true;
}

std::optional<UtcSeconds> make_time(int year, int month, int day, int hour, int minute, int second) {
  const std::chrono::year_month_day date(std::chrono::year(year), std::chrono::month(static_cast<unsigned>(month)),
                                         std::chrono::day(static_cast<unsigned>(day)));
  if (!date.ok() || hour > 23 || minute > 59 || second > 60) return std::nullopt;
  return std::chrono::sys_days(date) + hours(hour) + minutes(minute) + seconds(second);
}

struct Fields {
  int year, hour, minute, second;
  unsigned month, day;
};

Fields fields_of(UtcSeconds time) {
  const auto midnight = std::chrono::floor<days>(time);
  const std::chrono::year_month_day date(midnight);
  const auto of_day = time - midnight;
  return {static_cast<int>(date.year()),
          static_cast<int>(std::chrono::duration_cast<hours>(of_day).count()),
          static_cast<int>(std::chrono::duration_cast<minutes>(of_day).count() % 60),
          static_cast<int>(of_day.count() % 60),
          static_cast<unsigned>(date.month()),
          static_cast<unsigned>(date.day())};
}

}  // namespace

UtcSeconds utc_now() {
  return std::chrono::floor<seconds>(std::chrono::system_clock::now());
}

std::string to_amz_date(UtcSeconds time) {
  const Fields f = fields_of(time);
  std::array<char, 64> text{};
  const int size = std::snprintf(text.data(), text.size(), "%04d%02u%02uT%02d%02d%02dZ", f.year, f.month, f.day, f.hour,
                                 f.minute, f.second);
  return {text.data(), static_cast<std::size_t>(size)};
}

std::string to_iso_date(UtcSeconds time) {
  const Fields f = fields_of(time);
  std::array<char, 64> text{};
  const int size = std::snprintf(text.data(), text.size(), "%04d-%02u-%02uT%02d:%02d:%02dZ", f.year, f.month, f.day,
                                 f.hour, f.minute, f.second);
  return {text.data(), static_cast<std::size_t>(size)};
}

std::optional<UtcSeconds> parse_iso_date(std::string_view text) {
  text = trim_ascii(text);
  const auto year = take_digits(text, 4);
  const bool dashes = take(text, "-");
  const auto month = take_digits(text, 2);
  if (dashes && !take(text, "-")) return std::nullopt;
  const auto day = take_digits(text, 2);
  if (!take(text, "T") && !take(text, " ")) return std::nullopt;
  const auto hour = take_digits(text, 2);
  const bool colons = take(text, ":");
  const auto minute = take_digits(text, 2);
  if (colons && !take(text, ":")) return std::nullopt;
  const auto second = take_digits(text, 2);
  if (!year || !month || !day || !hour || !minute || !second) return std::nullopt;
  if (take(text, ".")) text.remove_prefix(std::min(text.find_first_not_of("0123456789"), text.size()));
  auto time = make_time(*year, *month, *day, *hour, *minute, *second);
  if (!time || text.empty() || text == "Z" || text == "z" || text == "UTC") return time;
  const bool east = text.starts_with('+');
  if (!take(text, "+") && !take(text, "-")) return std::nullopt;
  const auto offset_hours = take_digits(text, 2);
  take(text, ":");
  const auto offset_minutes = text.empty() ? std::optional<int>(0) : take_digits(text, 2);
  if (!offset_hours || !offset_minutes || !text.empty()) return std::nullopt;
  const seconds offset = hours(*offset_hours) + minutes(*offset_minutes);
  return east ? *time - offset : *time + offset;
}

std::optional<UtcSeconds> parse_http_date(std::string_view text) {
  constexpr std::array<std::string_view, 12> kMonths = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                                        "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  text = trim_ascii(text);
  const auto comma = text.find(", ");
  if (comma == std::string_view::npos) return std::nullopt;
  text.remove_prefix(comma + 2);
  const auto day = take_digits(text, 2);
  if (!take(text, " ")) return std::nullopt;
  const auto* const name = std::find(kMonths.begin(), kMonths.end(), text.substr(0, 3));
  if (name == kMonths.end()) return std::nullopt;
  text.remove_prefix(3);
  if (!take(text, " ")) return std::nullopt;
  const auto year = take_digits(text, 4);
  if (!take(text, " ")) return std::nullopt;
  const auto hour = take_digits(text, 2);
  if (!take(text, ":")) return std::nullopt;
  const auto minute = take_digits(text, 2);
  if (!take(text, ":")) return std::nullopt;
  const auto second = take_digits(text, 2);
  if (!day || !year || !hour || !minute || !second || text != " GMT") return std::nullopt;
  return make_time(*year, static_cast<int>(name - kMonths.begin()) + 1, *day, *hour, *minute, *second);
}

}  // namespace torchsnapshot
