#include "net/retry.h"

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <random>

#include "net/encoding.h"

namespace torchsnapshot {

using std::chrono::milliseconds;

std::optional<milliseconds> retry_pause(const RetryPolicy& policy, int failures, milliseconds elapsed,
                                        std::optional<milliseconds> asked, double random) {
  if (elapsed >= policy.give_up) return std::nullopt;
  const int doublings = std::clamp(failures - 1, 0, 20);
  const milliseconds ceiling = std::min<milliseconds>(policy.longest, policy.base * (1LL << doublings));
  milliseconds pause(static_cast<milliseconds::rep>(static_cast<double>(ceiling.count()) * random));
  if (asked) pause = std::max(pause, *asked);
  if (elapsed + pause > policy.give_up) return std::nullopt;
  return pause;
}

std::optional<milliseconds> parse_retry_after(std::string_view value, UtcSeconds now) {
  value = trim_ascii(value);
  std::int64_t seconds = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), seconds);
  if (!value.empty() && error == std::errc() && end == value.data() + value.size()) {
    if (seconds < 0) return std::nullopt;
    return milliseconds(std::min<std::int64_t>(seconds, 86'400) * 1000);
  }
  const auto date = parse_http_date(value);
  if (!date) return std::nullopt;
  return std::max(milliseconds(0), std::min<milliseconds>(*date - now, std::chrono::hours(24)));
}

int AttemptLog::failures() const noexcept {
  int sum = 0;
  for (const auto& [reason, count] : failures_) sum += count;
  return sum;
}

std::string AttemptLog::summary(milliseconds elapsed) const {
  std::string counts;
  for (const auto& [reason, count] : failures_) {
    counts += (counts.empty() ? "" : ", ") + std::to_string(count) + "x " + reason;
  }
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%.1f", static_cast<double>(elapsed.count()) / 1000);
  const int attempts = failures();
  return "after " + std::to_string(attempts) + (attempts == 1 ? " attempt in " : " attempts in ") + seconds + " s" +
         (counts.empty() ? "" : " (" + counts + ")");
}

bool sleep_unless_stopped(milliseconds pause, const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any never;
  std::unique_lock lock(mutex);
  never.wait_for(lock, stop, pause, [] { return false; });
  return !stop.stop_requested();
}

HttpResult perform_with_retries(const RetryPolicy& policy, const std::function<HttpResult()>& attempt,
                                const std::function<Verdict(const HttpResult&)>& judge, const std::stop_token& stop,
                                AttemptLog& log) {
  thread_local std::mt19937_64 random(std::random_device{}());
  const auto start = std::chrono::steady_clock::now();
  int at_once = 0;
  for (;;) {
    HttpResult result = attempt();
    if (result.fault == TransportFault::kCancelled) return result;
    const Verdict verdict = judge(result);
    if (verdict.kind == Verdict::Kind::kDone) return result;
    log.add(verdict.reason);
    if (verdict.kind == Verdict::Kind::kFailed) return result;
    if (verdict.kind == Verdict::Kind::kRetryAtOnce && ++at_once <= 3) continue;
    const auto elapsed = std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - start);
    const auto pause = retry_pause(policy, log.failures(), elapsed,
                                   parse_retry_after(result.response.header("retry-after"), utc_now()),
                                   std::uniform_real_distribution<double>(0, 1)(random));
    if (!pause) return result;
    if (!sleep_unless_stopped(*pause, stop)) {
      result.fault = TransportFault::kCancelled;
      return result;
    }
  }
}

}  // namespace torchsnapshot
