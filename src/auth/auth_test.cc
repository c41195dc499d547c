// The keeper of credentials, and every source against a server of the test's own.
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "auth/aws_chain.h"
#include "auth/aws_sources.h"
#include "auth/google_sources.h"
#include "auth/run_process.h"
#include "net/testing_server.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using namespace std::chrono_literals;

template <typename Action>
std::string error_of(ErrorCode code, Action action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.code()), to_string(code)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

void expect_in(const std::string& text, std::initializer_list<const char*> parts) {
  for (const char* part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
}

// --- the keeper ---------------------------------------------------------------------------------------------------

struct Counting final : CredentialSource {
  [[nodiscard]] std::string name() const override { return "counting"; }
  Credentials fetch(const std::stop_token&) override {
    const int number = ++fetched;
    if (pause > 0ms) std::this_thread::sleep_for(pause);
    if (fail) throw Error(ErrorCode::kPermissionDenied, "no more");
    Credentials result;
    result.bearer = "token-" + std::to_string(number);
    if (lifetime) result.expires = UtcSeconds(std::chrono::seconds(now + *lifetime));
    return result;
  }
  std::atomic<int> fetched = 0;
  std::atomic<bool> fail = false;
  std::atomic<std::int64_t> now = 1'000'000;
  std::optional<std::int64_t> lifetime = 3600;
  std::chrono::milliseconds pause{0};
};

struct Keeper {
  explicit Keeper(std::unique_ptr<Counting> made = std::make_unique<Counting>())
      : source(*made), keeper(std::move(made), [this] { return UtcSeconds(std::chrono::seconds(source.now)); }) {}
  std::string get() { return keeper.get({})->bearer; }
  Counting& source;
  CredentialKeeper keeper;
};

TEST(CredentialKeeper, RenewsBeforeTheyExpire) {
  Keeper k;
  EXPECT_EQ(k.get(), "token-1");
  k.source.now += 3600 - 301;
  EXPECT_EQ(k.get(), "token-1");
  k.source.now += 1;
  EXPECT_EQ(k.get(), "token-2");
  EXPECT_EQ(k.get(), "token-2");
}

TEST(CredentialKeeper, ThoseWithoutEndAreFetchedOnce) {
  auto source = std::make_unique<Counting>();
  source->lifetime.reset();
  Keeper k(std::move(source));
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(k.get(), "token-1");
    k.source.now += 1'000'000;
  }
}

TEST(CredentialKeeper, GoesOnWithTheOldOnesWhenARenewalFails) {
  Keeper k;
  k.get();
  k.source.fail = true;
  k.source.now += 3400;
  EXPECT_EQ(k.get(), "token-1");
  EXPECT_EQ(k.get(), "token-1");
  EXPECT_EQ(k.source.fetched, 2);  // not with every request
  k.source.now += 31;
  EXPECT_EQ(k.get(), "token-1");
  EXPECT_EQ(k.source.fetched, 3);
  k.source.now += 200;
  error_of(ErrorCode::kPermissionDenied, [&] { k.get(); });
  k.source.fail = false;
  EXPECT_EQ(k.get(), "token-5");
}

TEST(CredentialKeeper, InvalidatesOnlyWhatWasRefused) {
  Keeper k;
  const auto first = k.keeper.get({});
  k.keeper.invalidate(first);
  EXPECT_EQ(k.get(), "token-2");
  k.keeper.invalidate(first);  // another thread's request with the old ones
  EXPECT_EQ(k.get(), "token-2");
}

TEST(CredentialKeeper, OneRefreshAtATime) {
  auto source = std::make_unique<Counting>();
  source->pause = 50ms;
  Keeper k(std::move(source));
  std::vector<std::jthread> threads;
  for (int i = 0; i < 8; ++i) threads.emplace_back([&] { EXPECT_EQ(k.get(), "token-1"); });
  threads.clear();
  EXPECT_EQ(k.source.fetched, 1);
  // When they are about to expire, only one waits for the new ones.
  k.source.now += 3400;
  std::atomic<int> old = 0;
  for (int i = 0; i < 8; ++i) threads.emplace_back([&] { old += int{k.get() == "token-1"}; });
  threads.clear();
  EXPECT_EQ(k.source.fetched, 2);
  EXPECT_LE(old, 7);
}

TEST(CredentialKeeper, AStopEndsTheWait) {
  auto source = std::make_unique<Counting>();
  source->pause = 200ms;
  Keeper k(std::move(source));
  std::jthread first([&] { k.get(); });
  while (k.source.fetched == 0) std::this_thread::yield();
  std::stop_source stop;
  stop.request_stop();
  error_of(ErrorCode::kCancelled, [&] { k.keeper.get(stop.get_token()); });
}

// --- files and processes ------------------------------------------------------------------------------------------

TEST(Ini, AsTheAwsToolsReadIt) {
  const IniSections sections = parse_ini(
      "# comment\nlost = 1\n[default]\nregion = eu-west-1 # near\n  key=  a = b ; c\n\n[profile two]\r\n"
      "aws_access_key_id=AKID\r\ns3 =\n  addressing_style = path\n\tnested = 1\nx\n[ sso-session mine ]\nA_B = "
      "c#d\n[open\n");
  EXPECT_EQ(sections.at("default"), (std::map<std::string, std::string>{{"region", "eu-west-1"}}));
  EXPECT_EQ(sections.at("two"), (std::map<std::string, std::string>{{"aws_access_key_id", "AKID"}, {"s3", ""}}));
  EXPECT_EQ(sections.at("sso-session mine"), (std::map<std::string, std::string>{{"a_b", "c#d"}}));
  EXPECT_TRUE(parse_ini("").empty());
}

TEST(SplitCommand, QuotesAndBackslashes) {
  using Words = std::vector<std::string>;
  EXPECT_EQ(split_command("a  b\tc"), (Words{"a", "b", "c"}));
  EXPECT_EQ(split_command(R"(a "b c" 'd "e' f\ g "h\"i\j" "")"), (Words{"a", "b c", "d \"e", "f g", "h\"i\\j", ""}));
  EXPECT_EQ(split_command(R"(pre"mid"'post')"), (Words{"premidpost"}));
  EXPECT_EQ(split_command("a $HOME;|&"), (Words{"a", "$HOME;|&"}));
  error_of(ErrorCode::kInvalidArgument, [] { split_command("a 'b"); });
  error_of(ErrorCode::kInvalidArgument, [] { split_command("  "); });
}

TEST(RunProcess, OutputAndFailures) {
  EXPECT_EQ(run_process({"echo", "a b"}, {}, "x"), "a b\n");
  expect_in(error_of(ErrorCode::kPermissionDenied, [] { run_process({"/nowhere/x"}, {}, "the tool"); }),
            {"the tool", "can't be started"});
  expect_in(error_of(ErrorCode::kPermissionDenied, [] { run_process({"sh", "-c", "exit 3"}, {}, "x"); }), {"status 3"});
  expect_in(error_of(ErrorCode::kPermissionDenied, [] { run_process({"yes"}, {}, "x"); }), {"1 MiB"});
  std::stop_source stop;
  std::jthread stopper([&] {
    std::this_thread::sleep_for(30ms);
    stop.request_stop();
  });
  error_of(ErrorCode::kCancelled, [&] { run_process({"sleep", "1000"}, stop.get_token(), "x"); });
}

// --- sources ------------------------------------------------------------------------------------------------------

class Sources : public testing::Test {
 protected:
  static void SetUpTestSuite() { server_ = new TestServer("token_server.py", {}); }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }
  void SetUp() override {
    server_->clear();
    std::string path = (std::filesystem::temp_directory_path() / "torchsnapshot-auth-XXXXXX").native();
    ASSERT_NE(::mkdtemp(path.data()), nullptr);
    home_ = path;
    variables_ = {{"HOME", path}, {"AWS_EC2_METADATA_DISABLED", "true"}};
  }
  void TearDown() override { std::filesystem::remove_all(home_); }

  std::string write(const std::string& name, const std::string& content) const {
    std::filesystem::create_directories((home_ / name).parent_path());
    std::ofstream(home_ / name) << content;
    return (home_ / name).native();
  }
  [[nodiscard]] Environment environment() const {
    return {[variables = variables_](const std::string& name) -> std::optional<std::string> {
      const auto found = variables.find(name);
      return found == variables.end() ? std::nullopt : std::optional(found->second);
    }};
  }
  [[nodiscard]] std::unique_ptr<CredentialSource> aws(const std::string& profile = "") const {
    return aws_credential_chain(profile, "us-east-1", environment(), "");
  }
  /// "KEY/TOKEN by NAME"
  static std::string shown(CredentialSource& source) {
    const Credentials got = source.fetch({});
    return (got.key ? got.key->access_key_id + "/" + got.key->session_token : got.bearer) + " by " + source.name();
  }
  void shut_out_the_rest() { variables_["AWS_ENDPOINT_URL_STS"] = server_->url(); }

  static TestServer* server_;
  std::filesystem::path home_;
  std::map<std::string, std::string> variables_;
};
TestServer* Sources::server_ = nullptr;

TEST_F(Sources, AwsOrder) {
  variables_["AWS_WEB_IDENTITY_TOKEN_FILE"] = write("token", "web-identity-token\n");
  variables_["AWS_ROLE_ARN"] = "arn:aws:iam::1:role/pod";
  shut_out_the_rest();
  EXPECT_EQ(shown(*aws()),
            "AKIDTEST/AssumeRoleWithWebIdentity-1 by role arn:aws:iam::1:role/pod by the web identity in " +
                (home_ / "token").native());
  write(".aws/credentials",
        "[default]\naws_access_key_id = A1\naws_secret_access_key = S1\n"
        "[two]\naws_access_key_id = A2\naws_secret_access_key = S2\naws_session_token = T2\n");
  write(".aws/config", "[default]\nregion = eu-west-3\n[profile none]\nregion = x\n");
  EXPECT_EQ(shown(*aws()), "A1/ by profile 'default'");
  variables_["AWS_PROFILE"] = "two";
  EXPECT_EQ(shown(*aws()), "A2/T2 by profile 'two'");
  variables_["AWS_ACCESS_KEY_ID"] = "A3";
  expect_in(error_of(ErrorCode::kPermissionDenied, [&] { shown(*aws()); }), {"no AWS_SECRET_ACCESS_KEY"});
  variables_["AWS_SECRET_ACCESS_KEY"] = "S3";
  EXPECT_EQ(shown(*aws()), "A3/ by the environment");
  EXPECT_EQ(shown(*aws("two")), "A2/T2 by profile 'two'");
  expect_in(error_of(ErrorCode::kPermissionDenied, [&] { shown(*aws("three")); }), {"no AWS profile 'three'"});
  expect_in(error_of(ErrorCode::kPermissionDenied, [&] { shown(*aws("none")); }), {"'none' has no credentials"});
}

TEST_F(Sources, NothingFoundSaysWhereItWasLookedFor) {
  expect_in(error_of(ErrorCode::kPermissionDenied, [&] { shown(*aws()); }),
            {"no AWS credentials", "AWS_ACCESS_KEY_ID", "profile", "anonymous=true"});
}

TEST_F(Sources, AssumedRoles) {
  shut_out_the_rest();
  write(".aws/config",
        "[profile base]\naws_access_key_id = AKIDTEST\naws_secret_access_key = S\n"
        "[profile role]\nrole_arn = arn:r\nsource_profile = base\nexternal_id = ext\nduration_seconds = 900\n"
        "role_session_name = me\n"
        "[profile chain]\nrole_arn = arn:c\nsource_profile = role\n"
        "[profile loop]\nrole_arn = arn:l\nsource_profile = loop\n"
        "[profile env]\nrole_arn = arn:e\ncredential_source = Environment\n"
        "[profile mfa]\nrole_arn = arn:m\nsource_profile = base\nmfa_serial = x\n");
  EXPECT_EQ(shown(*aws("role")), "AKIDTEST/AssumeRole-1 by role arn:r by profile 'base'");
  const nlohmann::json form = server_->state("last_form");
  EXPECT_EQ(form["ExternalId"], "ext");
  EXPECT_EQ(form["DurationSeconds"], "900");
  EXPECT_EQ(form["RoleSessionName"], "me");
  EXPECT_EQ(shown(*aws("chain")), "AKIDTEST/AssumeRole-3 by role arn:c by role arn:r by profile 'base'");
  expect_in(error_of(ErrorCode::kPermissionDenied, [&] { shown(*aws("loop")); }), {"leads back to itself"});
  expect_in(error_of(ErrorCode::kUnsupported, [&] { shown(*aws("mfa")); }), {"mfa_serial"});
  expect_in(error_of(ErrorCode::kPermissionDenied, [&] { shown(*aws("env")); }), {"no credentials"});
  variables_["AWS_ACCESS_KEY_ID"] = "UNKNOWN";
  variables_["AWS_SECRET_ACCESS_KEY"] = "hush";
  const std::string refused = error_of(ErrorCode::kPermissionDenied, [&] { shown(*aws("env")); });
  expect_in(refused, {"STS", "403 InvalidClientTokenId: no"});
  EXPECT_EQ(refused.find("hush"), std::string::npos);
}

TEST_F(Sources, Processes) {
  write(".aws/config",
        "[profile good]\ncredential_process = printf "
        "'{\"Version\": 1, \"AccessKeyId\": \"AP\", \"SecretAccessKey\": \"SP\", \"SessionToken\": \"TP\", "
        "\"Expiration\": \"2999-01-01T00:00:00Z\"}'\n"
        "[profile bad]\ncredential_process = echo hush\n[profile old]\ncredential_process = echo {}\n");
  EXPECT_EQ(shown(*aws("good")), "AP/TP by the credential_process of profile 'good'");
  const std::string bad = error_of(ErrorCode::kPermissionDenied, [&] { shown(*aws("bad")); });
  expect_in(bad, {"credential_process", "malformed JSON"});
  EXPECT_EQ(bad.find("hush"), std::string::npos);
  expect_in(error_of(ErrorCode::kPermissionDenied, [&] { shown(*aws("old")); }), {"no Version 1"});
}

TEST_F(Sources, SsoUsesTheCachedLogin) {
  variables_["AWS_ENDPOINT_URL_SSO"] = server_->url();
  write(".aws/config",
        "[profile p]\nsso_session = s\nsso_account_id = 123456789012\nsso_role_name = Reader\n"
        "[sso-session s]\nsso_start_url = https://start\nsso_region = eu-west-1\n");
  expect_in(error_of(ErrorCode::kPermissionDenied, [&] { shown(*aws("p")); }), {"login is missing", "aws sso login"});
  write(".aws/sso/cache/0a.json",
        R"({"startUrl": "https://start", "accessToken": "x", "expiresAt": "2001-01-01T00:00:00Z"})");
  write(".aws/sso/cache/0b.json",
        R"({"startUrl": "https://other", "accessToken": "x", "expiresAt": "2999-01-01T00:00:00Z"})");
  expect_in(error_of(ErrorCode::kPermissionDenied, [&] { shown(*aws("p")); }), {"login has expired", "aws sso login"});
  write(".aws/sso/cache/0c.json",
        R"({"startUrl": "https://start", "accessToken": "sso-token", "expiresAt": "2999-01-01T00:00:00UTC"})");
  EXPECT_EQ(shown(*aws("p")), "AKIDTEST/sso-1 by SSO at https://start");
}

TEST_F(Sources, Containers) {
  variables_["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = server_->url() + "/container";
  variables_["AWS_CONTAINER_AUTHORIZATION_TOKEN"] = "wrong";
  expect_in(error_of(ErrorCode::kPermissionDenied, [&] { shown(*aws()); }),
            {"container", "403 AccessDenied: wrong token"});
  variables_["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] = write("token", "container-token\n");
  EXPECT_EQ(shown(*aws()), "AKIDTEST/container-1 by the container's credential endpoint");
  variables_["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = "http://example.com/container";
  expect_in(error_of(ErrorCode::kPermissionDenied, [&] { shown(*aws()); }), {"example.com", "https"});
}

TEST_F(Sources, Instances) {
  variables_.erase("AWS_EC2_METADATA_DISABLED");
  variables_["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = server_->url() + "/";
  EXPECT_EQ(shown(*aws()), "AKIDTEST/instance-1 by the instance's metadata server");
  server_->inject({{"kind", "status"}, {"status", 500}});
  EXPECT_EQ(shown(*aws()), "AKIDTEST/instance-2 by the instance's metadata server");
  variables_["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = "http://127.0.0.1:1";
  expect_in(error_of(ErrorCode::kPermissionDenied, [&] { shown(*aws()); }), {"no AWS credentials", "metadata server"});
}

TEST_F(Sources, GoogleOrder) {
  const auto google = [&](const std::string& file = "") { return google_credential_chain(file, environment(), ""); };
  variables_["GCE_METADATA_HOST"] = "127.0.0.1:1";
  expect_in(error_of(ErrorCode::kPermissionDenied, [&] { shown(*google()); }),
            {"no Google credentials", "GOOGLE_APPLICATION_CREDENTIALS", "gcloud auth", "anonymous=true"});
  variables_["GCE_METADATA_HOST"] = "127.0.0.1:" + server_->port();
  EXPECT_EQ(shown(*google()), "good-token by the metadata server at 127.0.0.1:" + server_->port());
  const std::string user = R"({"type": "authorized_user", "client_id": "i", "client_secret": "client-secret",
                               "refresh_token": "refresh-token", "token_uri": ")" +
                           server_->url() + "/token\"}";
  write(".config/gcloud/application_default_credentials.json", user);
  EXPECT_EQ(shown(*google()).substr(0, 29), "good-token by the user's logi");
  EXPECT_EQ(server_->count("refresh"), 1);
  variables_["GOOGLE_APPLICATION_CREDENTIALS"] = (home_ / "none.json").native();
  expect_in(error_of(ErrorCode::kPermissionDenied, [&] { shown(*google()); }), {"none.json", "does not exist"});
  const std::string wrong =
      write("wrong.json", R"({"type": "authorized_user", "client_id": "i", "client_secret": "hush",
      "refresh_token": "also-hush", "token_uri": ")" +
                              server_->url() + "/token\"}");
  const std::string refused = error_of(ErrorCode::kPermissionDenied, [&] { shown(*google(wrong)); });
  expect_in(refused, {"400 invalid_grant: Bad Request"});
  EXPECT_EQ(refused.find("hush"), std::string::npos);
  expect_in(error_of(ErrorCode::kUnsupported, [&] { shown(*google(write("other.json", R"({"type": "gdch"})"))); }),
            {"'gdch'", "service_account, authorized_user, external_account", "callback"});
  expect_in(error_of(ErrorCode::kInvalidArgument,
                     [&] {
                       shown(*google(write("http.json", R"({"type": "authorized_user", "client_id": "i",
                           "client_secret": "s", "refresh_token": "r", "token_uri": "http://example.com/"})")));
                     }),
            {"token_uri", "https"});
  const std::string bad_key = error_of(ErrorCode::kInvalidArgument, [&] {
    shown(*google(write("key.json", R"({"type": "service_account", "client_email": "e@x", "private_key": "hush"})")));
  });
  expect_in(bad_key, {"key.json", "no RSA key"});
  EXPECT_EQ(bad_key.find("hush"), std::string::npos);
}

TEST_F(Sources, GoogleFederation) {
  const auto google = [&](const std::string& file) { return google_credential_chain(file, environment(), ""); };
  const auto account = [&](const std::string& source, const std::string& more) {
    nlohmann::json content{{"type", "external_account"},
                           {"audience", "//iam.googleapis.com/pool"},
                           {"subject_token_type", "urn:ietf:params:oauth:token-type:jwt"},
                           {"token_url", server_->url() + "/exchange"},
                           {"credential_source", nlohmann::json::parse(source)}};
    content.update(nlohmann::json::parse(more));
    return write("federated.json", content.dump());
  };
  const std::string file = R"({"file": ")" + write("subject", "subject-token\n") + "\"}";
  const auto impersonating = [&] {
    return nlohmann::json{{"service_account_impersonation_url", server_->url() + "/impersonate"}}.dump();
  };
  EXPECT_EQ(shown(*google(account(file, "{}"))),
            "good-token by the identity federation of " + (home_ / "federated.json").native());
  EXPECT_EQ(server_->count("exchange"), 1);
  EXPECT_EQ(shown(*google(account(file, impersonating()))).substr(0, 10), "good-token");
  EXPECT_EQ(server_->count("impersonate"), 1);
  const std::string url = R"({"url": ")" + server_->url() +
                          R"(/subject", "headers": {"x-wanted": "yes"},
                              "format": {"type": "json", "subject_token_field_name": "value"}})";
  EXPECT_EQ(shown(*google(account(url, "{}"))).substr(0, 10), "good-token");
  EXPECT_EQ(server_->count("subject"), 1);

  const std::string wrong = R"({"file": ")" + write("wrong", "hush-token") + "\"}";
  const std::string refused = error_of(ErrorCode::kPermissionDenied, [&] { shown(*google(account(wrong, "{}"))); });
  expect_in(refused, {"the exchange of", "federated.json", "400 invalid_grant: not that subject"});
  EXPECT_EQ(refused.find("hush"), std::string::npos);
  server_->set({{"federated", "another"}, {"bearer", "one more"}});
  const std::string login = R"({"type": "authorized_user", "client_id": "i", "client_secret": "client-secret",
                                "refresh_token": "refresh-token", "token_uri": ")" +
                            server_->url() + "/token\"}";
  const auto acting = [&](const std::string& source) {
    return write("acting.json", R"({"type": "impersonated_service_account", "source_credentials": )" + source +
                                    R"(, "service_account_impersonation_url": ")" + server_->url() + "/impersonate\"}");
  };
  EXPECT_EQ(shown(*google(acting(login))),
            "one more by the service account that " + (home_ / "acting.json").native() + " acts as");
  server_->set({{"federated", "federated-token"}, {"bearer", "good-token"}});
  expect_in(error_of(ErrorCode::kUnsupported, [&] { shown(*google(acting("{}"))); }), {"acting.json", "type ''"});
  server_->inject({{"kind", "status"}, {"status", 403}, {"path", "/impersonate"}});
  expect_in(error_of(ErrorCode::kPermissionDenied, [&] { shown(*google(account(file, impersonating()))); }),
            {"the service account of", "403"});
  expect_in(error_of(ErrorCode::kUnsupported, [&] { shown(*google(account(R"({"executable": {}})", "{}"))); }),
            {"a program", "google.auth"});
  expect_in(error_of(ErrorCode::kUnsupported,
                     [&] { shown(*google(account(R"({"environment_id": "aws1", "url": "http://x"})", "{}"))); }),
            {"'aws1'", "credentials function"});
  expect_in(
      error_of(ErrorCode::kPermissionDenied, [&] { shown(*google(account(R"({"file": "/nowhere/token"})", "{}"))); }),
      {"/nowhere/token does not exist"});
  expect_in(error_of(ErrorCode::kInvalidArgument,
                     [&] { shown(*google(account(file, R"({"token_url": "http://example.com/"})"))); }),
            {"token_url", "https"});
}

TEST_F(Sources, ATokenServerThatStumblesIsAskedAgain) {
  shut_out_the_rest();
  variables_["AWS_WEB_IDENTITY_TOKEN_FILE"] = write("token", "web-identity-token");
  variables_["AWS_ROLE_ARN"] = "arn:x";
  server_->inject({{"kind", "status"}, {"count", 2}});
  server_->inject({{"kind", "lose_response"}});
  EXPECT_EQ(shown(*aws()).substr(0, 16), "AKIDTEST/AssumeR");
}

}  // namespace
}  // namespace torchsnapshot
