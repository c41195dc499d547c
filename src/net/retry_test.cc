#include "net/retry.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace torchsnapshot {
namespace {

using namespace std::chrono_literals;
using std::chrono::milliseconds;

const RetryPolicy kPolicy{.base = 100ms, .longest = 2000ms, .give_up = 10'000ms};

TEST(RetryPause, IsFullJitterBelowADoublingCeiling) {
  EXPECT_EQ(retry_pause(kPolicy, 1, 0ms, {}, 0.0), 0ms);
  EXPECT_EQ(retry_pause(kPolicy, 1, 0ms, {}, 0.5), 50ms);
  EXPECT_EQ(retry_pause(kPolicy, 2, 0ms, {}, 0.5), 100ms);
  EXPECT_EQ(retry_pause(kPolicy, 5, 0ms, {}, 0.5), 800ms);
  EXPECT_EQ(retry_pause(kPolicy, 6, 0ms, {}, 0.5), 1000ms);
  EXPECT_EQ(retry_pause(kPolicy, 60, 0ms, {}, 0.5), 1000ms);
  EXPECT_EQ(retry_pause(kPolicy, 2'000'000, 0ms, {}, 0.999), 1998ms);
}

TEST(RetryPause, TheServerMayAskForMore) {
  EXPECT_EQ(retry_pause(kPolicy, 1, 0ms, 3000ms, 0.5), 3000ms);
  EXPECT_EQ(retry_pause(kPolicy, 5, 0ms, 10ms, 0.5), 800ms);
  EXPECT_EQ(retry_pause(kPolicy, 1, 0ms, 11'000ms, 0.5), std::nullopt);  // not before it is too late
}

TEST(RetryPause, EndsWithTheDeadline) {
  EXPECT_EQ(retry_pause(kPolicy, 1, 9990ms, {}, 0.05), 5ms);
  EXPECT_EQ(retry_pause(kPolicy, 1, 9990ms, {}, 0.5), std::nullopt);
  EXPECT_EQ(retry_pause(kPolicy, 1, 10'000ms, {}, 0.0), std::nullopt);
}

TEST(RetryAfter, SecondsOrDate) {
  const UtcSeconds now = *parse_iso_date("2015-08-30T12:36:00Z");
  EXPECT_EQ(parse_retry_after("7", now), 7000ms);
  EXPECT_EQ(parse_retry_after(" 0 ", now), 0ms);
  EXPECT_EQ(parse_retry_after("Sun, 30 Aug 2015 12:36:05 GMT", now), 5000ms);
  EXPECT_EQ(parse_retry_after("Sun, 30 Aug 2015 12:30:00 GMT", now), 0ms);
  EXPECT_EQ(parse_retry_after("99999999999", now), 86'400'000ms);
  for (const char* none : {"", "-1", "soon", "1.5"}) EXPECT_EQ(parse_retry_after(none, now), std::nullopt) << none;
}

HttpResult status(int code) {
  HttpResult result;
  result.response.status = code;
  return result;
}

Verdict judge_status(const HttpResult& result) {
  if (result.response.status == 200) return {};
  if (result.response.status == 503) return {Verdict::Kind::kRetry, "503"};
  if (result.response.status == 401) return {Verdict::Kind::kRetryAtOnce, "401"};
  return {Verdict::Kind::kFailed, std::to_string(result.response.status)};
}

int attempts_until_end(std::vector<int> codes, int expected, const RetryPolicy& policy, AttemptLog& log,
                       const std::stop_token& stop = {}) {
  std::size_t attempts = 0;
  const HttpResult result = perform_with_retries(
      policy, [&] { return status(codes[std::min(attempts++, codes.size() - 1)]); }, judge_status, stop, log);
  EXPECT_EQ(result.response.status, expected);
  return static_cast<int>(attempts);
}

TEST(PerformWithRetries, UntilItIsDoneOrOfNoUse) {
  const RetryPolicy quick{.base = 1ms, .longest = 1ms, .give_up = 60'000ms};
  AttemptLog log;
  EXPECT_EQ(attempts_until_end({503, 401, 503, 200}, 200, quick, log), 4);
  EXPECT_EQ(log.failures(), 3);
  EXPECT_EQ(log.summary(1234ms), "after 3 attempts in 1.2 s (1x 401, 2x 503)");
  AttemptLog fatal;
  EXPECT_EQ(attempts_until_end({503, 404}, 404, quick, fatal), 2);
  AttemptLog over;
  EXPECT_EQ(attempts_until_end({503}, 503, {.base = 1ms, .longest = 1ms, .give_up = 0ms}, over), 1);
  EXPECT_EQ(over.summary(0ms), "after 1 attempt in 0.0 s (1x 503)");
}

TEST(PerformWithRetries, WhatIsRetriedAtOnceForeverEndsToo) {
  AttemptLog log;
  const RetryPolicy policy{.base = 1ms, .longest = 1ms, .give_up = 20ms};
  EXPECT_GE(attempts_until_end({401}, 401, policy, log), 4);
}

TEST(PerformWithRetries, AStopEndsThePause) {
  const RetryPolicy slow{.base = 3'600'000ms, .longest = 3'600'000ms, .give_up = 36'000'000ms};
  std::stop_source stop;
  AttemptLog log;
  std::jthread stopper([&] {
    std::this_thread::sleep_for(20ms);
    stop.request_stop();
  });
  const HttpResult result = perform_with_retries(
      slow, [] { return status(503); }, judge_status, stop.get_token(), log);
  EXPECT_EQ(result.fault, TransportFault::kCancelled);
}

}  // namespace
}  // namespace torchsnapshot
