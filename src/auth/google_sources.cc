#include "auth/google_sources.h"

#include <algorithm>
#include <utility>

#include "auth/google_federation.h"
#include "net/encoding.h"
#include "net/rs256.h"
#include "net/url.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::string_view kScope = "https://www.googleapis.com/auth/devstorage.read_write";
constexpr const char* kTokenUri = "https://oauth2.googleapis.com/token";

JsonValue parse_answer(const std::string& text, const std::string& what) {
  try {
    return parse_json(text);
  } catch (const Error& error) {
    throw Error(ErrorCode::kPermissionDenied, what + ": " + error.what());
  }
}

class Chain final : public CredentialSource {
 public:
  Chain(std::string credentials_file, Environment environment, std::string ca_bundle)
      : file_(std::move(credentials_file)), environment_(std::move(environment)), client_(std::move(ca_bundle)) {
    file_was_chosen_ = !file_.empty();
    if (file_.empty()) {
      file_ = environment_.get_or("GOOGLE_APPLICATION_CREDENTIALS", "");
      file_was_chosen_ = !file_.empty();
    }
    if (file_.empty()) {
      file_ = environment_.get_or("CLOUDSDK_CONFIG", environment_.expand("~/.config/gcloud")) +
              "/application_default_credentials.json";
    }
    file_ = environment_.expand(file_);
  }

  [[nodiscard]] std::string name() const override {
    const std::lock_guard lock(mutex_);
    return name_;
  }

  Credentials fetch(const std::stop_token& stop) override {
    const auto text = read_credentials_file(file_);
    if (text) return from_file(*text, stop);
    if (file_was_chosen_) {
      throw Error(ErrorCode::kPermissionDenied, "the Google credentials file " + file_ + " does not exist");
    }
    return from_metadata(stop);
  }

 private:
  void call(std::string name) {
    const std::lock_guard lock(mutex_);
    name_ = std::move(name);
  }

  Credentials from_file(const std::string& text, const std::stop_token& stop) {
    const std::string what = "the Google credentials file " + file_;
    return from_content(parse_answer(text, what), what, stop);
  }

  Credentials from_content(const JsonValue& content, const std::string& what, const std::stop_token& stop) {
    const std::string_view type = content.field_text("type");
    if (type == "external_account") {
      call("the identity federation of " + file_);
      return exchange_external_account(content, what, environment_, client_, stop);
    }
    if (type == "impersonated_service_account") {
      const JsonValue* const source = content.field("source_credentials");
      if (source == nullptr || source->field_text("type") == type) {
        throw Error(ErrorCode::kPermissionDenied, what + ": it has no source_credentials");
      }
      const std::string url = need_field(content, "service_account_impersonation_url", what);
      const std::string bearer = from_content(*source, what, stop).bearer;
      call("the service account that " + file_ + " acts as");
      return impersonate_service_account(url, bearer, content.field("delegates"), what, client_, stop);
    }
    const std::string_view uri = content.field_text("token_uri");
    TokenRequest request{.method = "POST", .url = uri.empty() ? kTokenUri : std::string(uri)};
    check_token_url(request.url, what + ": token_uri");
    request.headers = {{"Content-Type", "application/x-www-form-urlencoded"}};
    if (type == "service_account") {
      const std::string email = need_field(content, "client_email", what);
      call("service account " + email + " in " + file_);
      std::string jwt;
      try {
        jwt = make_service_account_jwt(email, content.field_text("private_key_id"),
                                       need_field(content, "private_key", what), request.url, utc_now());
      } catch (const Error& error) {
        throw error.with_context(what);
      }
      request.body = encode_query({{"grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"}, {"assertion", jwt}});
    } else if (type == "authorized_user") {
      call("the user's login in " + file_);
      request.body = encode_query({{"grant_type", "refresh_token"},
                                   {"refresh_token", need_field(content, "refresh_token", what)},
                                   {"client_id", need_field(content, "client_id", what)},
                                   {"client_secret", need_field(content, "client_secret", what)}});
    } else {
      throw Error(ErrorCode::kUnsupported, what + " is of type '" + std::string(type.substr(0, 40)) +
                                               "'; supported are service_account, authorized_user, external_account "
                                               "and impersonated_service_account. For others give a token or a "
                                               "callback in the storage options");
    }
    request.what = name() + " at " + parse_http_url(request.url, "token_uri").authority;
    return google_token_of(parse_answer(client_.ask(request, stop), request.what), request.what);
  }

  Credentials from_metadata(const std::stop_token& stop) {
    const std::string host = environment_.get_or("GCE_METADATA_HOST", "metadata.google.internal");
    call("the metadata server at " + host);
    TokenRequest request{.what = name(), .is_local = true};
    request.url = "http://" + host + "/computeMetadata/v1/instance/service-accounts/default/token";
    request.headers = {{"Metadata-Flavor", "Google"}};
    try {
      return google_token_of(parse_answer(client_.ask(request, stop), request.what), request.what);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kCancelled) throw;
      throw Error(error.code(), std::string("no Google credentials were found: not in the options, "
                                            "GOOGLE_APPLICATION_CREDENTIALS or ") +
                                    file_ + ", and " + error.what() +
                                    "; run: gcloud auth application-default login, or for a public bucket set "
                                    "anonymous=true");
    }
  }

  std::string file_;
  bool file_was_chosen_ = false;
  const Environment environment_;
  TokenClient client_;
  mutable std::mutex mutex_;
  std::string name_ = "the default chain";  // guarded by mutex_
};

}  // namespace

std::string make_service_account_jwt(std::string_view email, std::string_view key_id, std::string_view private_key_pem,
                                     std::string_view audience, UtcSeconds now) {
  const auto seconds = now.time_since_epoch().count();
  std::string header = R"({"alg":"RS256","typ":"JWT")";
  if (!key_id.empty()) header += ",\"kid\":" + json_quote(key_id);
  header += "}";
  const std::string claims = "{\"iss\":" + json_quote(email) + ",\"scope\":" + json_quote(kScope) +
                             ",\"aud\":" + json_quote(audience) + ",\"iat\":" + std::to_string(seconds) +
                             ",\"exp\":" + std::to_string(seconds + 3600) + "}";
  const std::string signed_part = to_base64url(as_octets(header)) + "." + to_base64url(as_octets(claims));
  return signed_part + "." + to_base64url(sign_rs256(signed_part, private_key_pem));
}

std::unique_ptr<CredentialSource> google_credential_chain(std::string credentials_file, Environment environment,
                                                          std::string ca_bundle) {
  return std::make_unique<Chain>(std::move(credentials_file), std::move(environment), std::move(ca_bundle));
}

}  // namespace torchsnapshot
