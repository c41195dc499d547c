// Points in time as HTTP and AWS write them. UTC, seconds; the locale has no say.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

namespace torchsnapshot {

using UtcSeconds = std::chrono::sys_seconds;

/// The time now, by the system's clock.
UtcSeconds utc_now();

/// "20150830T123600Z", the form of signatures.
std::string to_amz_date(UtcSeconds time);
/// "2015-08-30T12:36:00Z", the form of HTTP APIs.
std::string to_iso_date(UtcSeconds time);

/// "2015-08-30T12:36:00Z", also with a fraction (dropped), an offset (+01:00), or the compact form of to_amz_date.
std::optional<UtcSeconds> parse_iso_date(std::string_view text);
/// "Sun, 30 Aug 2015 12:36:00 GMT".
std::optional<UtcSeconds> parse_http_date(std::string_view text);

}  // namespace torchsnapshot
