#include "auth/token_request.h"

#include <utility>

#include "net/encoding.h"
#include "net/url.h"
#include "net/xml.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using namespace std::chrono_literals;

constexpr const char* kUserAgent = "torchsnapshot/" TORCHSNAPSHOT_VERSION;

/// The code and message of an error of STS (XML), OAuth or a metadata server (JSON); "" when there is none.
std::string told_by(const std::string& body) {
  const auto joined = [](std::string_view code, std::string_view message) {
    std::string text(code.substr(0, 100));
    if (!message.empty()) text += (text.empty() ? "" : ": ") + std::string(message.substr(0, 300));
    for (char& c : text) {
      if (static_cast<unsigned char>(c) < 0x20) c = ' ';
    }
    return text;
  };
  try {
    const std::string_view content = trim_ascii(body);
    if (content.starts_with('<')) {
      const XmlElement root = parse_xml(content);
      const XmlElement* const error = root.child("Error");
      if (error != nullptr) return joined(error->child_text("Code"), error->child_text("Message"));
    } else if (content.starts_with('{')) {
      const JsonValue root = parse_json(content);
      if (!root.field_text("error").empty())
        return joined(root.field_text("error"), root.field_text("error_description"));
      if (const JsonValue* const error = root.field("error"); error != nullptr) {
        return joined(error->field_text("status"), error->field_text("message"));
      }
      return joined(root.field_text("code"), root.field_text("message"));
    }
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): then the status has to do
  }
  return "";
}

}  // namespace

TokenClient::TokenClient(std::string ca_bundle)
    : remote_({.user_agent = kUserAgent,
               .ca_bundle = std::move(ca_bundle),
               .connect_timeout = 10'000ms,
               .stall_timeout = 20'000ms}),
      local_({.user_agent = kUserAgent, .connect_timeout = 1'000ms, .stall_timeout = 3'000ms}) {}

std::string TokenClient::ask(const TokenRequest& request, const std::stop_token& stop) {
  HttpRequest http;
  http.method = request.method;
  http.url = request.url;
  http.headers = request.headers;
  http.body = std::as_bytes(std::span(request.body));
  http.max_text = 1 << 20;
  http.bypass_proxy = request.is_local;
  const RetryPolicy policy{.base = 100ms, .longest = 2'000ms, .give_up = request.is_local ? 2'000ms : 30'000ms};
  int unreachable = 0;
  AttemptLog log;
  const HttpResult result = perform_with_retries(
      policy, [&] { return (request.is_local ? local_ : remote_).perform(http, stop); },
      [&](const HttpResult& got) -> Verdict {
        const int status = got.response.status;
        if (got.fault == TransportFault::kNone) {
          if (status >= 200 && status < 300) return {};
          const bool transient = status == 429 || status >= 500;
          return {transient ? Verdict::Kind::kRetry : Verdict::Kind::kFailed, std::to_string(status)};
        }
        const bool nobody = got.fault == TransportFault::kConnect || got.fault == TransportFault::kResolve;
        const bool hopeless = got.fault == TransportFault::kCertificate || (nobody && ++unreachable >= 2);
        return {hopeless ? Verdict::Kind::kFailed : Verdict::Kind::kRetry, std::string(to_string(got.fault))};
      },
      stop, log);
  if (result.fault == TransportFault::kCancelled) throw Error(ErrorCode::kCancelled, request.what + ": cancelled");
  if (result.fault != TransportFault::kNone) {
    throw Error(ErrorCode::kPermissionDenied,
                request.what + " gave no credentials: " + std::string(to_string(result.fault)) + ": " + result.detail);
  }
  if (result.response.status < 200 || result.response.status >= 300) {
    const std::string told = told_by(result.response.text);
    throw Error(ErrorCode::kPermissionDenied, request.what +
                                                  " gave no credentials: " + std::to_string(result.response.status) +
                                                  (told.empty() ? "" : " " + told));
  }
  return result.response.text;
}

void check_token_url(const std::string& url, const std::string& what) {
  const HttpUrl parts = parse_http_url(url, what);
  if (parts.scheme == "https" || is_loopback_host(parts.host())) return;
  throw Error(ErrorCode::kInvalidArgument, what + ": secrets go there, so it must be an https:// URL");
}

std::string need_field(const JsonValue& answer, const std::string& name, const std::string& what) {
  const std::string_view value = answer.field_text(name);
  if (value.empty()) throw Error(ErrorCode::kPermissionDenied, what + ": its answer has no " + name);
  return std::string(value);
}

}  // namespace torchsnapshot
