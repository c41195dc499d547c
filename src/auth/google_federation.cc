#include "auth/google_federation.h"

#include <algorithm>

#include "net/encoding.h"
#include "net/time_text.h"
#include "net/url.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr const char* kStorageScope = "https://www.googleapis.com/auth/devstorage.read_write";
constexpr const char* kImpersonatingScope = "https://www.googleapis.com/auth/cloud-platform";

JsonValue parse_answer(const std::string& text, const std::string& what) {
  try {
    return parse_json(text);
  } catch (const Error& error) {
    throw Error(ErrorCode::kPermissionDenied, what + ": " + error.what());
  }
}

[[noreturn]] void fail_unsupported(const std::string& what, const std::string& source) {
  throw Error(ErrorCode::kUnsupported, what + ": a credential_source that is " + source +
                                           " is not supported; from Python give storage_options a credentials "
                                           "function that asks google.auth, or else a token");
}

/// What the other side says about this machine.
std::string subject_token(const JsonValue& content, const std::string& what, const Environment& environment,
                          TokenClient& client, const std::stop_token& stop) {
  const JsonValue* const source = content.field("credential_source");
  if (source == nullptr) throw Error(ErrorCode::kPermissionDenied, what + ": it has no credential_source");
  if (source->field("executable") != nullptr) fail_unsupported(what, "a program (executable)");
  if (!source->field_text("environment_id").empty()) {
    fail_unsupported(what, "'" + std::string(source->field_text("environment_id").substr(0, 40)) + "'");
  }
  std::string text;
  std::string from;
  if (const std::string file(source->field_text("file")); !file.empty()) {
    from = what + ": the subject token's file " + file;
    const auto read = read_credentials_file(environment.expand(file));
    if (!read) throw Error(ErrorCode::kPermissionDenied, from + " does not exist");
    text = *read;
  } else if (const std::string url(source->field_text("url")); !url.empty()) {
    TokenRequest request{.url = url};
    const HttpUrl parts = parse_http_url(url, what + ": credential_source.url");
    request.is_local = parts.scheme == "http";  // a metadata server; a token that comes is for one audience
    from = what + ": the subject token's server " + parts.authority;
    request.what = from;
    if (const JsonValue* const headers = source->field("headers"); headers != nullptr) {
      for (const auto& [name, value] : headers->fields) request.headers.emplace_back(name, value.text);
    }
    text = client.ask(request, stop);
  } else {
    fail_unsupported(what, "neither a file nor a URL");
  }
  const JsonValue* const format = source->field("format");
  if (format != nullptr && format->field_text("type") == "json") {
    std::string name(format->field_text("subject_token_field_name"));
    if (name.empty()) name = "access_token";
    text = need_field(parse_answer(text, from), name, from);
  }
  text = trim_ascii(text);
  if (text.empty()) throw Error(ErrorCode::kPermissionDenied, from + " is empty");
  return text;
}

}  // namespace

Credentials google_token_of(const JsonValue& answer, const std::string& what) {
  Credentials result;
  result.bearer = need_field(answer, "access_token", what);
  if (const auto seconds = answer.field_integer("expires_in")) {
    result.expires = utc_now() + std::chrono::seconds(std::max<std::int64_t>(*seconds, 0));
  }
  return result;
}

Credentials exchange_external_account(const JsonValue& content, const std::string& what, const Environment& environment,
                                      TokenClient& client, const std::stop_token& stop) {
  const std::string account(content.field_text("service_account_impersonation_url"));
  TokenRequest request{.method = "POST", .url = need_field(content, "token_url", what)};
  check_token_url(request.url, what + ": token_url");
  request.what = "the exchange of " + what + " at " + parse_http_url(request.url, "token_url").authority;
  request.headers = {{"Content-Type", "application/x-www-form-urlencoded"}};
  if (const std::string id(content.field_text("client_id")); !id.empty()) {
    const std::string pair = id + ":" + std::string(content.field_text("client_secret"));
    request.headers.emplace_back("Authorization", "Basic " + to_base64(as_octets(pair)));
  }
  Query form = {{"grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"},
                {"requested_token_type", "urn:ietf:params:oauth:token-type:access_token"},
                {"audience", need_field(content, "audience", what)},
                {"scope", account.empty() ? kStorageScope : kImpersonatingScope},
                {"subject_token_type", need_field(content, "subject_token_type", what)},
                {"subject_token", subject_token(content, what, environment, client, stop)}};
  if (const std::string project(content.field_text("workforce_pool_user_project")); !project.empty()) {
    form.emplace_back("options", "{\"userProject\":" + json_quote(project) + "}");
  }
  request.body = encode_query(form);
  Credentials exchanged = google_token_of(parse_answer(client.ask(request, stop), request.what), request.what);
  if (account.empty()) return exchanged;
  return impersonate_service_account(account, exchanged.bearer, nullptr, what, client, stop);
}

Credentials impersonate_service_account(const std::string& url, const std::string& bearer, const JsonValue* delegates,
                                        const std::string& what, TokenClient& client, const std::stop_token& stop) {
  TokenRequest request{.method = "POST", .url = url};
  check_token_url(url, what + ": service_account_impersonation_url");
  request.what = "the service account of " + what + " at " + parse_http_url(url, "impersonation").authority;
  request.headers = {{"Content-Type", "application/json"}, {"Authorization", "Bearer " + bearer}};
  request.body = std::string("{\"scope\":[\"") + kStorageScope + "\"],\"lifetime\":\"3600s\"";
  if (delegates != nullptr && !delegates->items.empty()) {
    std::string list;
    for (const JsonValue& name : delegates->items) list += (list.empty() ? "" : ",") + json_quote(name.text);
    request.body += ",\"delegates\":[" + list + "]";
  }
  request.body += "}";
  const JsonValue answer = parse_answer(client.ask(request, stop), request.what);
  Credentials result;
  result.bearer = need_field(answer, "accessToken", request.what);
  result.expires = parse_iso_date(answer.field_text("expireTime"));
  return result;
}

}  // namespace torchsnapshot
