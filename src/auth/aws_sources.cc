#include "auth/aws_sources.h"

#include <filesystem>
#include <utility>

#include "auth/run_process.h"
#include "net/encoding.h"
#include "net/sha256.h"
#include "net/url.h"
#include "net/xml.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

[[noreturn]] void refuse(const std::string& text) {
  throw Error(ErrorCode::kPermissionDenied, text);
}

JsonValue parse_answer(const std::string& text, const std::string& what) {
  try {
    return parse_json(text);
  } catch (const Error& error) {
    refuse(what + ": its answer makes no sense: " + error.what());
  }
}

std::optional<UtcSeconds> expiry_of(std::string_view text, const std::string& what) {
  if (text.empty()) return std::nullopt;
  const auto time = parse_iso_date(text);
  if (!time) refuse(what + ": its answer has an expiry that is no date");
  return time;
}

/// The JSON that containers, instances and processes answer with.
Credentials credentials_of(const JsonValue& answer, const std::string& token_field, const std::string& what) {
  Credentials result;
  result.key = AwsKey{need_field(answer, "AccessKeyId", what), need_field(answer, "SecretAccessKey", what),
                      std::string(answer.field_text(token_field))};
  result.expires = expiry_of(answer.field_text("Expiration"), what);
  return result;
}

class ProcessCredentials final : public CredentialSource {
 public:
  ProcessCredentials(std::string command, std::string name) : command_(std::move(command)), name_(std::move(name)) {}
  [[nodiscard]] std::string name() const override { return name_; }
  Credentials fetch(const std::stop_token& stop) override {
    const JsonValue answer = parse_answer(run_process(split_command(command_), stop, name_), name_);
    if (answer.field_integer("Version") != 1) refuse(name_ + ": its answer has no Version 1");
    return credentials_of(answer, "SessionToken", name_);
  }

 private:
  const std::string command_;
  const std::string name_;
};

/// Asks STS and takes the credentials out of its XML.
Credentials ask_sts(TokenClient& client, const RoleSettings& role, Query form, const std::string& what,
                    const AwsKey* key, const std::stop_token& stop) {
  form.emplace_back("Version", "2011-06-15");
  form.emplace_back("RoleArn", role.role_arn);
  form.emplace_back("RoleSessionName", role.session_name);
  if (!role.duration_seconds.empty()) form.emplace_back("DurationSeconds", role.duration_seconds);
  TokenRequest request{.what = what, .method = "POST", .url = role.sts_endpoint};
  const HttpUrl url = parse_http_url(request.url, "the endpoint of STS");
  check_token_url(request.url, "the endpoint of STS");
  request.body = encode_query(form);
  request.headers = {{"Content-Type", "application/x-www-form-urlencoded"}};
  if (key != nullptr) {
    const std::string date = to_amz_date(utc_now());
    request.headers.emplace_back("X-Amz-Date", date);
    if (!key->session_token.empty()) request.headers.emplace_back("X-Amz-Security-Token", key->session_token);
    SigningInput input{"POST", url.path, {}, request.headers, to_hex(sha256(request.body)), date, role.region, "sts"};
    input.headers.emplace_back("Host", url.authority);
    request.headers.emplace_back("Authorization", sign_v4(input, *key).authorization);
  }
  const std::string text = client.ask(request, stop);
  try {
    const XmlElement root = parse_xml(text);
    for (const XmlElement& part : root.children) {
      const XmlElement* const found = part.child("Credentials");
      if (found == nullptr || found->child_text("AccessKeyId").empty()) continue;
      Credentials result;
      result.key =
          AwsKey{std::string(found->child_text("AccessKeyId")), std::string(found->child_text("SecretAccessKey")),
                 std::string(found->child_text("SessionToken"))};
      result.expires = expiry_of(found->child_text("Expiration"), what);
      return result;
    }
  } catch (const Error& error) {
    refuse(what + ": its answer makes no sense: " + error.what());
  }
  refuse(what + ": its answer has no credentials");
}

class AssumedRole final : public CredentialSource {
 public:
  AssumedRole(RoleSettings role, std::unique_ptr<CredentialSource> base, std::shared_ptr<TokenClient> client)
      : role_(std::move(role)), base_(std::move(base)), client_(std::move(client)) {}
  [[nodiscard]] std::string name() const override { return "role " + role_.role_arn + " by " + base_->name(); }
  Credentials fetch(const std::stop_token& stop) override {
    const Credentials base = base_->fetch(stop);
    if (!base.key) refuse(name() + ": the source has no key");
    Query form{{"Action", "AssumeRole"}};
    if (!role_.external_id.empty()) form.emplace_back("ExternalId", role_.external_id);
    return ask_sts(*client_, role_, std::move(form), "STS (for " + name() + ")", &*base.key, stop);
  }

 private:
  const RoleSettings role_;
  const std::unique_ptr<CredentialSource> base_;
  const std::shared_ptr<TokenClient> client_;
};

class WebIdentity final : public CredentialSource {
 public:
  WebIdentity(RoleSettings role, std::string token_file, std::shared_ptr<TokenClient> client)
      : role_(std::move(role)), token_file_(std::move(token_file)), client_(std::move(client)) {}
  [[nodiscard]] std::string name() const override {
    return "role " + role_.role_arn + " by the web identity in " + token_file_;
  }
  Credentials fetch(const std::stop_token& stop) override {
    const auto token = read_credentials_file(token_file_);
    if (!token) refuse("AWS_WEB_IDENTITY_TOKEN_FILE: " + token_file_ + " does not exist");
    Query form{{"Action", "AssumeRoleWithWebIdentity"}, {"WebIdentityToken", std::string(trim_ascii(*token))}};
    return ask_sts(*client_, role_, std::move(form), "STS (for " + name() + ")", nullptr, stop);
  }

 private:
  const RoleSettings role_;
  const std::string token_file_;
  const std::shared_ptr<TokenClient> client_;
};

class Sso final : public CredentialSource {
 public:
  Sso(SsoSettings sso, std::shared_ptr<TokenClient> client) : sso_(std::move(sso)), client_(std::move(client)) {}
  [[nodiscard]] std::string name() const override { return "SSO at " + sso_.start_url; }
  Credentials fetch(const std::stop_token& stop) override {
    TokenRequest request{.what = name()};
    request.url = sso_.endpoint + "/federation/credentials?" +
                  encode_query({{"role_name", sso_.role_name}, {"account_id", sso_.account_id}});
    check_token_url(request.url, "the endpoint of SSO");
    request.headers = {{"x-amz-sso_bearer_token", cached_token()}};
    const JsonValue answer = parse_answer(client_->ask(request, stop), name());
    const JsonValue* const found = answer.field("roleCredentials");
    if (found == nullptr) refuse(name() + ": its answer has no roleCredentials");
    Credentials result;
    result.key = AwsKey{need_field(*found, "accessKeyId", name()), need_field(*found, "secretAccessKey", name()),
                        std::string(found->field_text("sessionToken"))};
    if (const auto milliseconds = found->field_integer("expiration")) {
      result.expires = UtcSeconds(std::chrono::seconds(*milliseconds / 1000));
    }
    return result;
  }

 private:
  /// What the last "aws sso login" left. The files are told apart by what they hold; their names are hashes.
  std::string cached_token() const {
    std::error_code ignored;
    bool is_expired = false;
    for (const auto& file : std::filesystem::directory_iterator(sso_.cache_folder, ignored)) {
      if (file.path().extension() != ".json") continue;
      const auto text = read_credentials_file(file.path().native());
      if (!text) continue;
      const JsonValue cached = parse_answer(*text, file.path().native());
      if (cached.field_text("startUrl") != sso_.start_url || cached.field_text("accessToken").empty()) continue;
      const auto expires = parse_iso_date(cached.field_text("expiresAt"));
      if (expires && *expires > utc_now()) return std::string(cached.field_text("accessToken"));
      is_expired = true;
    }
    refuse(name() + ": the login " + (is_expired ? "has expired" : "is missing") + "; run: aws sso login");
  }

  const SsoSettings sso_;
  const std::shared_ptr<TokenClient> client_;
};

class Container final : public CredentialSource {
 public:
  Container(std::string url, Environment environment, std::shared_ptr<TokenClient> client)
      : url_(std::move(url)), environment_(std::move(environment)), client_(std::move(client)) {}
  [[nodiscard]] std::string name() const override { return "the container's credential endpoint"; }
  Credentials fetch(const std::stop_token& stop) override {
    TokenRequest request{.what = name(), .url = url_, .is_local = true};
    const HttpUrl url = parse_http_url(url_, "AWS_CONTAINER_CREDENTIALS_FULL_URI");
    const std::string host = url.host();
    const bool is_known =
        is_loopback_host(host) || host == "169.254.170.2" || host == "169.254.170.23" || host == "fd00:ec2::23";
    if (url.scheme != "https" && !is_known) {
      refuse("AWS_CONTAINER_CREDENTIALS_FULL_URI: " + host + " is neither this machine nor reached by https");
    }
    if (const auto file = environment_.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")) {
      const auto token = read_credentials_file(*file);
      if (!token) refuse("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: " + *file + " does not exist");
      request.headers = {{"Authorization", std::string(trim_ascii(*token))}};
    } else if (const auto token = environment_.get("AWS_CONTAINER_AUTHORIZATION_TOKEN")) {
      request.headers = {{"Authorization", *token}};
    }
    return credentials_of(parse_answer(client_->ask(request, stop), name()), "Token", name());
  }

 private:
  const std::string url_;
  const Environment environment_;
  const std::shared_ptr<TokenClient> client_;
};

class Instance final : public CredentialSource {
 public:
  Instance(std::string endpoint, std::shared_ptr<TokenClient> client)
      : endpoint_(std::move(endpoint)), client_(std::move(client)) {}
  [[nodiscard]] std::string name() const override { return "the instance's metadata server"; }
  Credentials fetch(const std::stop_token& stop) override {
    TokenRequest request{.what = name(), .method = "PUT", .url = endpoint_ + "/latest/api/token", .is_local = true};
    request.headers = {{"X-aws-ec2-metadata-token-ttl-seconds", "21600"}};
    const std::string token = client_->ask(request, stop);
    request.method = "GET";
    request.headers = {{"X-aws-ec2-metadata-token", token}};
    const std::string roles = endpoint_ + "/latest/meta-data/iam/security-credentials/";
    request.url = roles;
    const std::string list = client_->ask(request, stop);
    const std::string_view role = trim_ascii(std::string_view(list).substr(0, list.find('\n')));
    if (role.empty()) refuse(name() + ": the instance has no role");
    request.url = roles + percent_encode(role);
    return credentials_of(parse_answer(client_->ask(request, stop), name()), "Token", name());
  }

 private:
  const std::string endpoint_;
  const std::shared_ptr<TokenClient> client_;
};

}  // namespace

std::unique_ptr<CredentialSource> process_credentials(std::string command, std::string name) {
  return std::make_unique<ProcessCredentials>(std::move(command), std::move(name));
}
std::unique_ptr<CredentialSource> assume_role_credentials(RoleSettings role, std::unique_ptr<CredentialSource> base,
                                                          std::shared_ptr<TokenClient> client) {
  return std::make_unique<AssumedRole>(std::move(role), std::move(base), std::move(client));
}
std::unique_ptr<CredentialSource> web_identity_credentials(RoleSettings role, std::string token_file,
                                                           std::shared_ptr<TokenClient> client) {
  return std::make_unique<WebIdentity>(std::move(role), std::move(token_file), std::move(client));
}
std::unique_ptr<CredentialSource> sso_credentials(SsoSettings sso, std::shared_ptr<TokenClient> client) {
  return std::make_unique<Sso>(std::move(sso), std::move(client));
}
std::unique_ptr<CredentialSource> container_credentials(std::string url, Environment environment,
                                                        std::shared_ptr<TokenClient> client) {
  return std::make_unique<Container>(std::move(url), std::move(environment), std::move(client));
}
std::unique_ptr<CredentialSource> instance_credentials(std::string endpoint, std::shared_ptr<TokenClient> client) {
  return std::make_unique<Instance>(std::move(endpoint), std::move(client));
}

}  // namespace torchsnapshot
