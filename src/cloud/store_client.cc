#include "cloud/store_client.h"

#include <utility>

#include "net/encoding.h"
#include "net/sha256.h"
#include "net/sigv4.h"

namespace torchsnapshot {

using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

constexpr int kAttemptsToReach = 4;           // of a server that never answered: more likely a typo than a fault
constexpr std::size_t kGatedBytes = 1 << 20;  // smaller bodies pass by the gate
constexpr milliseconds kGateWait{5'000};
constexpr int kDamagedAttempts = 4;  // of a body whose checksum the store finds wrong

}  // namespace

/// What the attempts of one request share.
struct StoreClient::Attempt {
  StoreRequest request;
  std::shared_ptr<const Credentials> credentials;
  StoreFault fault;
  bool renewed = false;
  bool clock_set = false;
  int unreachable = 0;
  int damaged = 0;
  int moves = 0;
  std::optional<HttpUrl> redirected;
};

StoreClient::StoreClient(StoreSettings settings, std::shared_ptr<CredentialKeeper> keeper)
    : settings_(std::move(settings)),
      keeper_(std::move(keeper)),
      http_({.user_agent = "torchsnapshot/" TORCHSNAPSHOT_VERSION,
             .ca_bundle = find_ca_bundle(settings_.ca_bundle),
             .connect_timeout = settings_.connect_timeout,
             .stall_timeout = settings_.stall_timeout}),
      region_(settings_.region) {}

std::string StoreClient::region() const {
  const std::lock_guard lock(mutex_);
  return region_;
}

std::string StoreClient::name_of(const std::string& key) const {
  return (settings_.kind == StoreKind::kS3 ? "s3://" : "gs://") + settings_.bucket + (key.empty() ? "" : "/" + key);
}

void StoreClient::authorize(HttpRequest& http, const HttpUrl& url, const Query& query,
                            const Credentials& credentials) const {
  if (!credentials.bearer.empty()) {
    http.headers.emplace_back("Authorization", "Bearer " + credentials.bearer);
    return;
  }
  if (!credentials.key) return;
  const std::span<const std::uint8_t> body(reinterpret_cast<const std::uint8_t*>(http.body.data()), http.body.size());
  const std::string payload = settings_.sign_payload ? to_hex(sha256(body)) : "UNSIGNED-PAYLOAD";
  const std::string date = to_amz_date(utc_now() + seconds(clock_ahead_.load()));
  http.headers.emplace_back("x-amz-content-sha256", payload);
  http.headers.emplace_back("x-amz-date", date);
  if (!credentials.key->session_token.empty()) {
    http.headers.emplace_back("x-amz-security-token", credentials.key->session_token);
  }
  SigningInput input{http.method, url.path, query, http.headers, payload, date, region(), "s3"};
  input.headers.emplace_back("host", url.authority);
  http.headers.emplace_back("Authorization", sign_v4(input, *credentials.key).authorization);
}

HttpResult StoreClient::send_once(Attempt& attempt, const std::stop_token& stop) {
  const StoreRequest& request = attempt.request;
  HttpUrl url = attempt.redirected.value_or(object_url(settings_, region(), request.key));
  if (!request.absolute_url.empty()) url = parse_http_url(request.absolute_url, "the address of an upload");
  HttpRequest http;
  http.method = request.method;
  http.headers = request.headers;
  http.body = request.body;
  http.sink = request.sink;
  http.into_sink = request.into_sink;
  http.place = request.place;
  http.max_text = request.max_text;
  if (keeper_ != nullptr) {
    attempt.credentials = keeper_->get(stop);
    authorize(http, url, request.query, *attempt.credentials);
  }
  if (!request.query.empty()) url.query = encode_query(request.query);
  http.url = url.text();
  // A body goes up as soon as it may, and then another may; one that comes down waits where its first bytes are.
  TransferGate::Place place;
  if (http.body.size() >= kGatedBytes) {
    place = gate_.enter(stop, kGateWait);
    http.on_sent = [&place] { place.release(); };
  } else if (http.sink.size() >= kGatedBytes && http.into_sink) {
    http.into_sink = [this, &place, &request, &stop](const HttpResponse& head) {
      const bool wanted = request.into_sink(head);
      if (wanted) place = gate_.enter(stop, kGateWait);
      return wanted;
    };
  }
  ++counters_.requests;
  HttpResult result = http_.perform(http, stop);
  if (result.response.status != 0) was_reached_ = true;
  return result;
}

/// Notes where the bucket is; false when the answer does not tell.
bool StoreClient::follow(const HttpResult& result, const StoreFault& fault, Attempt& attempt) {
  if (++attempt.moves > 3) return false;
  if (settings_.kind == StoreKind::kS3 && !fault.region.empty()) {
    const std::lock_guard lock(mutex_);
    if (region_ != fault.region) {
      region_ = fault.region;
      attempt.redirected.reset();
      return true;
    }
  }
  const std::string_view location = result.response.header("location");
  if (location.empty()) return false;
  try {
    HttpUrl target = parse_http_url(location, "the target of a redirection");
    const HttpUrl present = object_url(settings_, region(), "");
    if (present.scheme == "https" && target.scheme != "https") return false;
    // A signature is for one host; a token would be good for the new one's owner, too.
    if (settings_.kind != StoreKind::kS3 && target.authority != present.authority) return false;
    target.query.clear();  // ours is added
    attempt.redirected = std::move(target);
  } catch (const Error&) {
    return false;
  }
  return true;
}

Verdict StoreClient::judge(const HttpResult& result, Attempt& attempt) {
  using Kind = Verdict::Kind;
  attempt.fault = {};
  const int status = result.response.status;
  const bool success = status >= 200 && status < 300 && !is_hidden_error(result.response);
  if (result.fault == TransportFault::kNone && (success || status == 308)) return {};
  attempt.fault = parse_store_fault(result.response);
  if (attempt.fault.code.empty() && status == 200 && result.fault == TransportFault::kNone) {
    attempt.fault.code = "InternalError";  // an error document without a code
  }
  Verdict verdict{Kind::kFailed, reason_of(result, attempt.fault)};
  switch (classify(result, attempt.fault)) {
    case FaultClass::kTransient:
      verdict.kind = Kind::kRetry;
      break;
    case FaultClass::kUnreachable:
      if (was_reached_ || ++attempt.unreachable < kAttemptsToReach) verdict.kind = Kind::kRetry;
      break;
    case FaultClass::kDamaged:
      if (++attempt.damaged < kDamagedAttempts) verdict.kind = Kind::kRetry;
      break;
    case FaultClass::kClockSkew:
      if (const auto theirs = parse_http_date(result.response.header("date")); theirs && !attempt.clock_set) {
        clock_ahead_ = (*theirs - utc_now()).count();
        attempt.clock_set = true;
        verdict.kind = Kind::kRetryAtOnce;
      }
      break;
    case FaultClass::kExpired:
      if (keeper_ != nullptr && !attempt.renewed) {
        keeper_->invalidate(attempt.credentials);
        attempt.renewed = true;
        verdict.kind = Kind::kRetryAtOnce;
      }
      break;
    case FaultClass::kElsewhere:
      if (follow(result, attempt.fault, attempt)) verdict.kind = Kind::kRetryAtOnce;
      break;
    case FaultClass::kCancelled:
    case FaultClass::kFinal:
      break;
  }
  if (verdict.kind != Kind::kFailed) {
    ++counters_.retries;
    if (attempt.request.before_retry) attempt.request.before_retry(attempt.request, result.response);
  }
  return verdict;
}

StoreAnswer StoreClient::send(const StoreRequest& request, const std::stop_token& stop) {
  return send(request, stop, settings_.retry_timeout);
}

StoreAnswer StoreClient::send(const StoreRequest& request, const std::stop_token& stop, milliseconds retry_timeout) {
  const auto start = std::chrono::steady_clock::now();
  AttemptLog log;
  Attempt attempt{.request = request, .credentials = {}, .fault = {}, .redirected = {}};
  StoreAnswer answer;
  answer.result = perform_with_retries(
      {.base = settings_.retry_base, .give_up = retry_timeout}, [&] { return send_once(attempt, stop); },
      [&](const HttpResult& result) { return judge(result, attempt); }, stop, log);
  answer.fault = std::move(attempt.fault);
  if (log.failures() > 1) {
    answer.attempts = log.summary(std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - start));
  }
  if (answer.result.fault == TransportFault::kCancelled) {
    throw Error(ErrorCode::kCancelled, request.operation + " " + name_of(request.key) + ": cancelled");
  }
  return answer;
}

StoreAnswer StoreClient::send_ok(const StoreRequest& request, const std::stop_token& stop) {
  StoreAnswer answer = send(request, stop);
  if (!answer.ok()) throw error_of(request, answer);
  return answer;
}

Error StoreClient::error_of(const StoreRequest& request, const StoreAnswer& answer) const {
  const HttpResult& result = answer.result;
  std::string text = request.operation + " " + name_of(request.key) + ": " + reason_of(result, answer.fault);
  if (result.fault != TransportFault::kNone) {
    if (!result.detail.empty()) text += ": " + result.detail;
  } else if (!answer.fault.message.empty()) {
    text += ": " + answer.fault.message;
  }
  std::string facts;
  const auto add = [&](const std::string& fact) { facts += (facts.empty() ? "" : ", ") + fact; };
  if (!answer.fault.request_id.empty()) add("request id " + answer.fault.request_id);
  if (result.fault != TransportFault::kNone) {
    add("server " + object_url(settings_, region(), "").authority);
  }
  if (!answer.attempts.empty()) add(answer.attempts);
  if (!facts.empty()) text += " (" + facts + ")";
  const std::string source = keeper_ == nullptr ? "anonymous access" : keeper_->source_name();
  const std::string remedy = remedy_of(result, answer.fault, request.operation, source);
  if (!remedy.empty()) text += "; " + remedy;
  return {error_code_of(result, answer.fault), text};
}

}  // namespace torchsnapshot
