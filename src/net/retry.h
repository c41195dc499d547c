// When and how often a request is tried again: pure functions, and the loop that obeys them.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>

#include "net/http.h"
#include "net/time_text.h"

namespace torchsnapshot {

struct RetryPolicy {
  std::chrono::milliseconds base{100};         ///< the first pause is at most this long, the next at most twice
  std::chrono::milliseconds longest{20'000};   ///< no pause is longer, unless the server asks for it
  std::chrono::milliseconds give_up{180'000};  ///< no attempt starts later than this after the first one
};

/// How long to wait before the next attempt; nothing: give up. Full jitter: between 0 and base * 2^(failures - 1), by
/// `random` in [0, 1), but not shorter than the server asks for (at most until `give_up`). `failures`: attempts that
/// failed so far, at least 1. `elapsed`: since the first one started.
std::optional<std::chrono::milliseconds> retry_pause(const RetryPolicy& policy, int failures,
                                                     std::chrono::milliseconds elapsed,
                                                     std::optional<std::chrono::milliseconds> asked, double random);

/// The pause that a Retry-After header asks for: seconds, or a date.
std::optional<std::chrono::milliseconds> parse_retry_after(std::string_view value, UtcSeconds now);

/// What a response means for the one who sent the request.
struct Verdict {
  enum class Kind : std::uint8_t {
    kDone,        ///< it has worked
    kFailed,      ///< trying again is of no use
    kRetry,       ///< try again after a pause
    kRetryAtOnce  ///< try again: something is set right (clock, credentials, region)
  };
  Kind kind = Kind::kDone;
  std::string reason;  ///< "503 SlowDown", "connection reset"; for the log of attempts
};

/// What the attempts of one request came to, for messages and tests.
class AttemptLog {
 public:
  void add(const std::string& reason) { ++failures_[reason]; }
  [[nodiscard]] int failures() const noexcept;
  [[nodiscard]] const std::map<std::string, int>& by_reason() const noexcept { return failures_; }
  /// "after 4 attempts in 3.1 s (2x 503 SlowDown, 2x connection reset)"
  [[nodiscard]] std::string summary(std::chrono::milliseconds elapsed) const;

 private:
  std::map<std::string, int> failures_;
};

/// Sleeps; returns early, with false, when a stop is requested.
bool sleep_unless_stopped(std::chrono::milliseconds pause, const std::stop_token& stop);

/// Makes attempts until one is done, or trying again is of no use or not allowed any more; the result is that of the
/// last one. `attempt` sends the request, `judge` says what came of it. Counts into `log`. At most 3 attempts follow
/// at once, without a pause.
HttpResult perform_with_retries(const RetryPolicy& policy, const std::function<HttpResult()>& attempt,
                                const std::function<Verdict(const HttpResult&)>& judge, const std::stop_token& stop,
                                AttemptLog& log);

}  // namespace torchsnapshot
