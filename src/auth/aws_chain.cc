#include "auth/aws_chain.h"

#include <set>
#include <utility>

#include "auth/aws_sources.h"
#include "net/encoding.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

class Chain final : public CredentialSource {
 public:
  Chain(std::string profile, std::string region, Environment environment, std::string ca_bundle)
      : profile_(std::move(profile)),
        region_(std::move(region)),
        environment_(std::move(environment)),
        ca_bundle_(std::move(ca_bundle)) {}

  [[nodiscard]] std::string name() const override {
    const std::lock_guard lock(mutex_);
    return chosen_ == nullptr ? "the default chain" : chosen_->name();
  }

  Credentials fetch(const std::stop_token& stop) override {
    if (chosen_ == nullptr) {
      auto source = choose();
      const std::lock_guard lock(mutex_);
      chosen_ = std::move(source);
    }
    if (!is_last_resort_) return chosen_->fetch(stop);
    try {
      return chosen_->fetch(stop);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kCancelled) throw;
      fail_without(error.what());
    }
  }

 private:
  std::unique_ptr<CredentialSource> choose() {
    client_ = std::make_shared<TokenClient>(ca_bundle_);
    profiles_ = load_aws_profiles(environment_);
    if (!profile_.empty()) return of_profile_or_fail(profile_);
    if (auto source = from_variables()) return source;
    const auto chosen = environment_.get("AWS_PROFILE");
    if (chosen) return of_profile_or_fail(*chosen);
    std::set<std::string> visited;
    if (auto source = of_profile("default", visited)) return source;
    if (auto source = from_web_identity()) return source;
    if (auto source = from_container()) return source;
    if (auto source = from_instance()) {
      is_last_resort_ = true;
      return source;
    }
    fail_without("the metadata server is switched off (AWS_EC2_METADATA_DISABLED)");
  }

  [[noreturn]] static void fail_without(const std::string& last) {
    throw Error(ErrorCode::kPermissionDenied,
                "no AWS credentials were found: not in the options, the environment (AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY), the profile, a web identity or a container, and " +
                    last + "; for a public bucket set anonymous=true");
  }

  std::unique_ptr<CredentialSource> from_variables() const {
    const auto id = environment_.get("AWS_ACCESS_KEY_ID");
    const auto secret = environment_.get("AWS_SECRET_ACCESS_KEY");
    if (!id && !secret) return nullptr;
    if (!id || !secret) {
      throw Error(ErrorCode::kPermissionDenied,
                  std::string("the environment has ") + (id ? "AWS_ACCESS_KEY_ID but no AWS_SECRET_ACCESS_KEY"
                                                            : "AWS_SECRET_ACCESS_KEY but no AWS_ACCESS_KEY_ID"));
    }
    return fixed_credentials(
        {.key = AwsKey{*id, *secret, environment_.get_or("AWS_SESSION_TOKEN", "")}, .bearer = "", .expires = {}},
        "the environment");
  }

  std::unique_ptr<CredentialSource> of_profile_or_fail(const std::string& name) {
    std::set<std::string> visited;
    if (!profiles_.contains(name)) {
      throw Error(ErrorCode::kPermissionDenied, "there is no AWS profile '" + name +
                                                    "' in ~/.aws/config or "
                                                    "~/.aws/credentials");
    }
    if (auto source = of_profile(name, visited)) return source;
    throw Error(ErrorCode::kPermissionDenied, "the AWS profile '" + name + "' has no credentials");
  }

  /// Null when the profile is not there or has no credentials.
  std::unique_ptr<CredentialSource> of_profile(const std::string& name, std::set<std::string>& visited) {
    const auto found = profiles_.find(name);
    if (found == profiles_.end()) return nullptr;
    const AwsProfile& profile = found->second;
    const auto value = [&](const std::string& key) {
      const auto field = profile.find(key);
      return field == profile.end() ? std::string() : field->second;
    };
    const std::string called = "profile '" + name + "'";
    const bool seen = !visited.insert(name).second;
    if (!value("role_arn").empty() && !seen) return role_of(called, profile, visited);
    if (!value("aws_access_key_id").empty() && !value("aws_secret_access_key").empty()) {
      return fixed_credentials(
          {.key = AwsKey{value("aws_access_key_id"), value("aws_secret_access_key"), value("aws_session_token")},
           .bearer = "",
           .expires = {}},
          called);
    }
    if (seen) throw Error(ErrorCode::kPermissionDenied, called + ": its source_profile leads back to itself");
    if (!value("sso_account_id").empty()) return sso_of(called, profile);
    if (!value("credential_process").empty()) {
      return process_credentials(value("credential_process"), "the credential_process of " + called);
    }
    return nullptr;
  }

  std::unique_ptr<CredentialSource> role_of(const std::string& called, const AwsProfile& profile,
                                            std::set<std::string>& visited) {
    const auto value = [&](const std::string& key) {
      const auto field = profile.find(key);
      return field == profile.end() ? std::string() : field->second;
    };
    RoleSettings role = role_settings(value("role_arn"), value("role_session_name"), value("region"));
    role.external_id = value("external_id");
    role.duration_seconds = value("duration_seconds");
    if (!value("mfa_serial").empty()) {
      throw Error(ErrorCode::kUnsupported, called +
                                               ": a role that asks for a code (mfa_serial) is not supported; use "
                                               "credential_process or temporary keys");
    }
    if (!value("web_identity_token_file").empty()) {
      return web_identity_credentials(std::move(role), environment_.expand(value("web_identity_token_file")), client_);
    }
    std::unique_ptr<CredentialSource> base;
    const std::string source = value("credential_source");
    if (!value("source_profile").empty()) {
      base = of_profile(value("source_profile"), visited);
    } else if (source == "Environment") {
      base = from_variables();
    } else if (source == "EcsContainer") {
      base = from_container();
    } else if (source == "Ec2InstanceMetadata") {
      base = from_instance();
    }
    if (base == nullptr) {
      throw Error(ErrorCode::kPermissionDenied, called +
                                                    ": it has a role_arn, but its source_profile or "
                                                    "credential_source has no credentials");
    }
    return assume_role_credentials(std::move(role), std::move(base), client_);
  }

  [[nodiscard]] RoleSettings role_settings(const std::string& arn, const std::string& session,
                                           const std::string& region) const {
    RoleSettings role{.role_arn = arn};
    if (!session.empty()) role.session_name = session;
    role.region = region.empty() ? region_ : region;
    role.sts_endpoint = environment_.get_or(
        "AWS_ENDPOINT_URL_STS",
        environment_.get_or(
            "AWS_ENDPOINT_URL",
            "https://sts." + role.region + (role.region.starts_with("cn-") ? ".amazonaws.com.cn" : ".amazonaws.com")));
    return role;
  }

  std::unique_ptr<CredentialSource> sso_of(const std::string& called, const AwsProfile& profile) const {
    AwsProfile merged = profile;
    const auto session = profile.find("sso_session");
    if (session != profile.end()) {
      const auto section = profiles_.find("sso-session " + session->second);
      if (section == profiles_.end()) {
        throw Error(ErrorCode::kPermissionDenied,
                    called + ": there is no section [sso-session " + session->second + "]");
      }
      for (const auto& [key, value] : section->second) merged.try_emplace(key, value);
    }
    SsoSettings sso{.start_url = merged["sso_start_url"],
                    .region = merged["sso_region"],
                    .account_id = merged["sso_account_id"],
                    .role_name = merged["sso_role_name"],
                    .cache_folder = environment_.expand("~/.aws/sso/cache"),
                    .endpoint = ""};
    if (sso.start_url.empty() || sso.region.empty() || sso.role_name.empty()) {
      throw Error(ErrorCode::kPermissionDenied, called + ": it lacks sso_start_url, sso_region or sso_role_name");
    }
    sso.endpoint = environment_.get_or("AWS_ENDPOINT_URL_SSO", "https://portal.sso." + sso.region + ".amazonaws.com");
    return sso_credentials(std::move(sso), client_);
  }

  std::unique_ptr<CredentialSource> from_web_identity() const {
    const auto file = environment_.get("AWS_WEB_IDENTITY_TOKEN_FILE");
    const auto arn = environment_.get("AWS_ROLE_ARN");
    if (!file || !arn) return nullptr;
    return web_identity_credentials(role_settings(*arn, environment_.get_or("AWS_ROLE_SESSION_NAME", ""), ""), *file,
                                    client_);
  }

  std::unique_ptr<CredentialSource> from_container() const {
    std::string url = environment_.get_or("AWS_CONTAINER_CREDENTIALS_FULL_URI", "");
    if (const auto path = environment_.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")) {
      url = "http://169.254.170.2" + *path;
    }
    return url.empty() ? nullptr : container_credentials(url, environment_, client_);
  }

  std::unique_ptr<CredentialSource> from_instance() const {
    if (equal_ignoring_case(environment_.get_or("AWS_EC2_METADATA_DISABLED", ""), "true")) return nullptr;
    std::string endpoint = environment_.get_or("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254");
    while (endpoint.ends_with('/')) endpoint.pop_back();
    return instance_credentials(endpoint, client_);
  }

  const std::string profile_;
  const std::string region_;
  const Environment environment_;
  const std::string ca_bundle_;
  std::map<std::string, AwsProfile> profiles_;
  std::shared_ptr<TokenClient> client_;
  mutable std::mutex mutex_;
  std::unique_ptr<CredentialSource> chosen_;  // written under mutex_, by the one thread that fetches
  bool is_last_resort_ = false;
};

}  // namespace

std::map<std::string, AwsProfile> load_aws_profiles(const Environment& environment) {
  std::map<std::string, AwsProfile> profiles;
  const auto add = [&](const std::string& variable, const std::string& usual) {
    const auto text = read_credentials_file(environment.expand(environment.get_or(variable, usual)));
    if (!text) return;
    for (const auto& [name, fields] : parse_ini(*text)) {
      for (const auto& [key, value] : fields) profiles[name].insert_or_assign(key, value);
    }
  };
  add("AWS_CONFIG_FILE", "~/.aws/config");
  add("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials");
  return profiles;
}

std::unique_ptr<CredentialSource> aws_credential_chain(std::string profile, std::string region, Environment environment,
                                                       std::string ca_bundle) {
  return std::make_unique<Chain>(std::move(profile), std::move(region), std::move(environment), std::move(ca_bundle));
}

}  // namespace torchsnapshot
