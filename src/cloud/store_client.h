// Requests to one bucket: authorized, tried again, and turned into errors that say what to do.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <stop_token>
#include <string>

#include "auth/credentials.h"
#include "cloud/settings.h"
#include "cloud/store_error.h"
#include "cloud/transfer_gate.h"
#include "net/http.h"
#include "net/retry.h"
#include "net/url.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {

struct StoreRequest {
  std::string operation;  ///< for messages: "PutObject"
  std::string method;
  std::string key;  ///< whole, with the prefix; "": the bucket itself
  Query query{};
  HttpHeaders headers{};  ///< beside those of authorization
  std::span<const std::byte> body{};
  std::span<std::byte> sink{};
  std::function<bool(const HttpResponse&)> into_sink{};
  std::function<void(std::span<std::byte> dst, std::span<const std::byte> src)> place{};  ///< see HttpRequest
  std::uint64_t max_text = 16ULL << 20;
  /// Complete URL instead of the key's: a session of the JSON API.
  std::string absolute_url{};
  /// Called before another attempt with what came of the last one; may change this request (to ask for the rest only).
  std::function<void(StoreRequest&, const HttpResponse&)> before_retry{};
};

/// An answer that is no transient failure, and what it took.
struct StoreAnswer {
  HttpResult result;
  StoreFault fault;      ///< when it is no success
  std::string attempts;  ///< "after 2 attempts in 0.1 s (1x 503 SlowDown)"; "" for one

  [[nodiscard]] int status() const noexcept { return result.response.status; }
  [[nodiscard]] bool ok() const noexcept {
    return result.fault == TransportFault::kNone && status() >= 200 && status() < 300 && fault.code.empty();
  }
};

/// Numbers of one bucket's traffic, for tests and reports.
struct StoreCounters {
  std::atomic<std::uint64_t> requests = 0;
  std::atomic<std::uint64_t> retries = 0;
};

/// Thread-safe. Remembers the region of the bucket and the difference of the clocks.
class StoreClient {
 public:
  /// `keeper`: null for anonymous access.
  StoreClient(StoreSettings settings, std::shared_ptr<CredentialKeeper> keeper);

  [[nodiscard]] const StoreSettings& settings() const noexcept { return settings_; }
  [[nodiscard]] const StoreCounters& counters() const noexcept { return counters_; }

  /// Sends a request until it succeeds, fails for good or the retry timeout is over. Throws Error only when it was
  /// cancelled or there are no credentials; other failures are in the answer.
  StoreAnswer send(const StoreRequest& request, const std::stop_token& stop);
  /// As send with another limit on the time for attempts.
  StoreAnswer send(const StoreRequest& request, const std::stop_token& stop, std::chrono::milliseconds retry_timeout);
  /// As send, but any failure is thrown.
  StoreAnswer send_ok(const StoreRequest& request, const std::stop_token& stop);

  /// How many bodies of some size move at once, up or down: what waits for an answer doesn't count.
  [[nodiscard]] TransferGate& gate() noexcept { return gate_; }

  /// "PutObject s3://bucket/key: 403 AccessDenied: ... (request id X, after ...); what to do"
  [[nodiscard]] Error error_of(const StoreRequest& request, const StoreAnswer& answer) const;
  /// "s3://bucket/key"
  [[nodiscard]] std::string name_of(const std::string& key) const;

 private:
  struct Attempt;
  HttpResult send_once(Attempt& attempt, const std::stop_token& stop);
  Verdict judge(const HttpResult& result, Attempt& attempt);
  void authorize(HttpRequest& http, const HttpUrl& url, const Query& query, const Credentials& credentials) const;
  [[nodiscard]] std::string region() const;
  bool follow(const HttpResult& result, const StoreFault& fault, Attempt& attempt);

  const StoreSettings settings_;
  const std::shared_ptr<CredentialKeeper> keeper_;
  HttpClient http_;
  TransferGate gate_;
  StoreCounters counters_;
  std::atomic<bool> was_reached_ = false;
  std::atomic<std::int64_t> clock_ahead_ = 0;  // seconds that the server's clock is ahead of ours
  mutable std::mutex mutex_;
  std::string region_;  // guarded by mutex_
};

}  // namespace torchsnapshot
