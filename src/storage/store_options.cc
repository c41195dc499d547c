#include "storage/store_options.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "auth/aws_chain.h"
#include "auth/google_sources.h"
#include "core/text.h"
#include "net/encoding.h"
#include "storage/object_store.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::uint64_t kMiB = 1ULL << 20;
constexpr std::uint64_t kSmallestPart = 5 * kMiB;
constexpr std::uint64_t kLargestPart = 5ULL * 1024 * kMiB;

/// An option's own name, and what else it is called by tools that users come from.
struct Name {
  std::string_view name;
  std::string_view alias{};
};

constexpr std::array kCommonNames = {Name{"endpoint_url", "endpoint"},
                                     Name{"anonymous", "anon"},
                                     Name{"part_size"},
                                     Name{"concurrency"},
                                     Name{"connect_timeout"},
                                     Name{"stall_timeout"},
                                     Name{"retry_timeout"},
                                     Name{"checksum"},
                                     Name{"storage_class"},
                                     Name{"ca_bundle"}};
constexpr std::array kS3Names = {Name{"region", "region_name"},
                                 Name{"profile", "profile_name"},
                                 Name{"access_key_id", "aws_access_key_id"},
                                 Name{"secret_access_key", "aws_secret_access_key"},
                                 Name{"session_token", "aws_session_token"},
                                 Name{"addressing_style"},
                                 Name{"server_side_encryption"},
                                 Name{"sse_kms_key_id"},
                                 Name{"request_payer"},
                                 Name{"sign_payload"}};
constexpr std::array kGcsNames = {Name{"token", "access_token"}, Name{"credentials_file"}, Name{"user_project"},
                                  Name{"api"}};

[[noreturn]] void refuse(const std::string& name, const std::string& why) {
  throw Error(ErrorCode::kInvalidArgument, "storage option '" + name + "': " + why);
}

/// The options of one store, under their own names.
class Options {
 public:
  template <std::size_t N>
  Options(const StorageOptions& given, std::string_view scheme, const std::array<Name, N>& own) {
    std::vector<Name> known(kCommonNames.begin(), kCommonNames.end());
    known.insert(known.end(), own.begin(), own.end());
    for (const auto& [name, value] : given) {
      const auto found = std::find_if(known.begin(), known.end(), [&name = name](const Name& entry) {
        return entry.name == name || (!entry.alias.empty() && entry.alias == name);
      });
      if (found == known.end()) {
        std::string list;
        for (const Name& entry : known) list += (list.empty() ? "" : ", ") + std::string(entry.name);
        throw Error(ErrorCode::kInvalidArgument,
                    "unknown storage option " + quote_text(name) + "; " + std::string(scheme) + ":// knows " + list);
      }
      if (!values_.emplace(found->name, value).second) refuse(std::string(found->name), "it is given twice");
    }
  }

  [[nodiscard]] bool has(const std::string& name) const { return values_.contains(name); }
  [[nodiscard]] std::string text(const std::string& name) const {
    const auto found = values_.find(name);
    return found == values_.end() ? std::string() : found->second;
  }

  [[nodiscard]] bool flag(const std::string& name) const {
    const std::string value = to_lower_ascii(text(name));
    if (value.empty() || value == "false" || value == "0" || value == "no") return false;
    if (value == "true" || value == "1" || value == "yes") return true;
    refuse(name, quote_text(value) + " is neither true nor false");
  }

  void seconds(const std::string& name, std::chrono::milliseconds& out) const {
    if (!has(name)) return;
    const std::string value = text(name);
    double number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc() || end != value.data() + value.size() || !(number > 0) || number > 1e6) {
      refuse(name, quote_text(value) + " is no number of seconds above 0");
    }
    out = std::max(std::chrono::milliseconds(1), std::chrono::milliseconds(std::llround(number * 1000)));
  }

  /// "16777216", "16MiB", "16 MB" (of 1024 each).
  void bytes(const std::string& name, std::uint64_t least, std::uint64_t most, std::uint64_t& out) const {
    if (!has(name)) return;
    const std::string value = text(name);
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    const std::string unit =
        to_lower_ascii(trim_ascii(std::string_view(end, static_cast<std::size_t>(value.data() + value.size() - end))));
    std::uint64_t factor = 0;
    if (unit.empty() || unit == "b") factor = 1;
    if (unit == "k" || unit == "kb" || unit == "kib") factor = 1024;
    if (unit == "m" || unit == "mb" || unit == "mib") factor = kMiB;
    if (unit == "g" || unit == "gb" || unit == "gib") factor = 1024 * kMiB;
    if (error != std::errc() || factor == 0) refuse(name, quote_text(value) + " is no size (such as 16MiB)");
    if (number > most / factor || number * factor < least) {
      refuse(name, quote_text(value) + " is not between " + std::to_string(least) + " and " + std::to_string(most) +
                       " bytes");
    }
    out = number * factor;
  }

  template <std::size_t N>
  [[nodiscard]] std::string one_of(const std::string& name, const std::array<std::string_view, N>& choices) const {
    std::string value = has(name) ? text(name) : std::string(choices[0]);
    if (std::find(choices.begin(), choices.end(), value) != choices.end()) return value;
    std::string list;
    for (const std::string_view choice : choices) list += (list.empty() ? "" : ", ") + std::string(choice);
    refuse(name, quote_text(value) + " is none of " + list);
  }

 private:
  std::map<std::string, std::string> values_;
};

StoreSettings common_settings(const std::string& bucket_and_prefix, const Options& options) {
  StoreSettings settings;
  const auto slash = std::min(bucket_and_prefix.find('/'), bucket_and_prefix.size());
  settings.bucket = bucket_and_prefix.substr(0, slash);
  check_bucket_name(settings.bucket);
  std::string_view prefix = std::string_view(bucket_and_prefix).substr(slash);
  while (prefix.starts_with('/')) prefix.remove_prefix(1);
  while (prefix.ends_with('/')) prefix.remove_suffix(1);
  settings.prefix = prefix;
  if (options.has("endpoint_url")) {
    settings.endpoint = parse_http_url(options.text("endpoint_url"), "storage option 'endpoint_url'");
  }
  options.bytes("part_size", kSmallestPart, kLargestPart, settings.part_bytes);
  std::uint64_t concurrency = settings.concurrency;
  options.bytes("concurrency", 1, 1024, concurrency);
  settings.concurrency = static_cast<std::uint32_t>(concurrency);
  options.seconds("connect_timeout", settings.connect_timeout);
  options.seconds("stall_timeout", settings.stall_timeout);
  options.seconds("retry_timeout", settings.retry_timeout);
  settings.send_checksums = options.one_of("checksum", std::array<std::string_view, 2>{"crc32c", "none"}) == "crc32c";
  settings.storage_class = options.text("storage_class");
  settings.ca_bundle = options.text("ca_bundle");
  return settings;
}

/// Credentials that the program's own code finds.
class CallbackSource final : public CredentialSource {
 public:
  CallbackSource(CredentialsCallback callback, bool is_s3) : callback_(std::move(callback)), is_s3_(is_s3) {}
  [[nodiscard]] std::string name() const override { return "the credentials callback"; }
  Credentials fetch(const std::stop_token&) override {
    const std::map<std::string, std::string> given = callback_();
    const auto take = [&](const char* name) {
      const auto found = given.find(name);
      return found == given.end() ? std::string() : found->second;
    };
    for (const auto& [name, value] : given) {
      constexpr std::array<std::string_view, 5> kKnown = {"access_key_id", "secret_access_key", "session_token",
                                                          "token", "expires"};
      if (std::find(kKnown.begin(), kKnown.end(), name) == kKnown.end()) {
        fail("it gave " + quote_text(name) +
             ", which is none of access_key_id, secret_access_key, session_token, token, "
             "expires");
      }
    }
    Credentials result;
    if (is_s3_) {
      if (take("access_key_id").empty() || take("secret_access_key").empty()) {
        fail("it gave no access_key_id and secret_access_key");
      }
      result.key = AwsKey{take("access_key_id"), take("secret_access_key"), take("session_token")};
    } else {
      result.bearer = take("token");
      if (result.bearer.empty()) fail("it gave no token");
    }
    if (!take("expires").empty()) {
      result.expires = parse_iso_date(take("expires"));
      if (!result.expires) fail("'expires' is no ISO 8601 date");
    }
    return result;
  }

 private:
  [[noreturn]] static void fail(const std::string& why) {
    throw Error(ErrorCode::kInvalidArgument, "the credentials callback: " + why);
  }

  const CredentialsCallback callback_;
  const bool is_s3_;
};

}  // namespace

StoreConfig configure_s3(const std::string& bucket_and_prefix, const StorageOptions& given,
                         CredentialsCallback callback, const Environment& environment) {
  const Options options(given, "s3", kS3Names);
  StoreConfig config{.settings = common_settings(bucket_and_prefix, options), .credentials = nullptr};
  StoreSettings& settings = config.settings;
  settings.kind = StoreKind::kS3;

  const auto profiles = load_aws_profiles(environment);
  const std::string profile_name =
      options.has("profile") ? options.text("profile") : environment.get_or("AWS_PROFILE", "default");
  const auto profile = profiles.find(profile_name);
  const auto of_profile = [&](const std::string& key) {
    if (profile == profiles.end()) return std::string();
    const auto field = profile->second.find(key);
    return field == profile->second.end() ? std::string() : field->second;
  };
  const auto first_of = [](std::initializer_list<std::string> values) {
    const auto* const found = std::find_if(values.begin(), values.end(), [](const auto& v) { return !v.empty(); });
    return found == values.end() ? std::string() : *found;
  };
  settings.region = first_of({options.text("region"), environment.get_or("AWS_REGION", ""),
                              environment.get_or("AWS_DEFAULT_REGION", ""), of_profile("region"), "us-east-1"});
  if (!settings.endpoint) {
    const std::string endpoint = first_of({environment.get_or("AWS_ENDPOINT_URL_S3", ""),
                                           environment.get_or("AWS_ENDPOINT_URL", ""), of_profile("endpoint_url")});
    if (!endpoint.empty()) settings.endpoint = parse_http_url(endpoint, "AWS_ENDPOINT_URL");
  }
  if (settings.ca_bundle.empty()) {
    settings.ca_bundle = first_of({environment.get_or("AWS_CA_BUNDLE", ""), of_profile("ca_bundle")});
  }
  const std::string style =
      options.one_of("addressing_style", std::array<std::string_view, 3>{"auto", "path", "virtual"});
  settings.path_style = style == "path" || (style == "auto" && settings.endpoint.has_value());
  settings.server_side_encryption = options.text("server_side_encryption");
  settings.sse_kms_key_id = options.text("sse_kms_key_id");
  if (options.has("request_payer")) {
    if (options.text("request_payer") != "requester") refuse("request_payer", "the only value is 'requester'");
    settings.requester_pays = true;
  }
  settings.sign_payload = options.flag("sign_payload");

  const bool has_key = options.has("access_key_id") || options.has("secret_access_key");
  if (has_key && (options.text("access_key_id").empty() || options.text("secret_access_key").empty())) {
    refuse("access_key_id", "it and secret_access_key go together");
  }
  if (options.has("session_token") && !has_key) refuse("session_token", "it goes with access_key_id");
  const bool anonymous = options.flag("anonymous");
  if (int{anonymous} + int{has_key} + int{options.has("profile")} + int{callback != nullptr} > 1) {
    throw Error(
        ErrorCode::kInvalidArgument,
        "storage options: only one of anonymous, access_key_id, profile and a credentials callback can be given");
  }
  if (callback) {
    config.credentials = std::make_unique<CallbackSource>(std::move(callback), true);
  } else if (has_key) {
    config.credentials = fixed_credentials(
        {.key = AwsKey{options.text("access_key_id"), options.text("secret_access_key"), options.text("session_token")},
         .bearer = "",
         .expires = {}},
        "the storage options");
  } else if (!anonymous) {
    config.credentials =
        aws_credential_chain(options.text("profile"), settings.region, environment, find_ca_bundle(settings.ca_bundle));
  }
  return config;
}

StoreConfig configure_gcs(const std::string& bucket_and_prefix, const StorageOptions& given,
                          CredentialsCallback callback, const Environment& environment) {
  const Options options(given, "gs", kGcsNames);
  StoreConfig config{.settings = common_settings(bucket_and_prefix, options), .credentials = nullptr};
  StoreSettings& settings = config.settings;
  const auto emulator = environment.get("STORAGE_EMULATOR_HOST");
  const bool is_emulated = emulator && !settings.endpoint;
  const std::string api = options.one_of("api", std::array<std::string_view, 2>{"xml", "json"});
  const bool json = api == "json" || (is_emulated && !options.has("api"));
  settings.kind = json ? StoreKind::kGoogleJson : StoreKind::kGoogleXml;
  settings.path_style = true;
  if (is_emulated) {
    settings.endpoint = parse_http_url(emulator->find("://") == std::string::npos ? "http://" + *emulator : *emulator,
                                       "STORAGE_EMULATOR_HOST");
  } else if (!settings.endpoint) {
    settings.endpoint = parse_http_url("https://storage.googleapis.com", "endpoint_url");
  }
  constexpr std::uint64_t kChunkUnit = 256 << 10;  // of the JSON API
  settings.part_bytes = settings.part_bytes / kChunkUnit * kChunkUnit;
  settings.user_project = options.text("user_project");

  const bool anonymous = options.flag("anonymous");
  if (int{anonymous} + int{options.has("token")} + int{options.has("credentials_file")} + int{callback != nullptr} >
      1) {
    throw Error(
        ErrorCode::kInvalidArgument,
        "storage options: only one of anonymous, token, credentials_file and a credentials callback can be given");
  }
  if (callback) {
    config.credentials = std::make_unique<CallbackSource>(std::move(callback), false);
  } else if (options.has("token")) {
    config.credentials =
        fixed_credentials({.key = {}, .bearer = options.text("token"), .expires = {}}, "the storage options");
  } else if (options.has("credentials_file") || (!anonymous && !is_emulated)) {
    config.credentials =
        google_credential_chain(options.text("credentials_file"), environment, find_ca_bundle(settings.ca_bundle));
  }
  if (config.credentials && settings.endpoint->scheme != "https" && !is_loopback_host(settings.endpoint->host())) {
    throw Error(ErrorCode::kInvalidArgument, "storage option 'endpoint_url': a token would go to " +
                                                 settings.endpoint->authority +
                                                 " without encryption; use https://, or anonymous=true");
  }
  return config;
}

namespace {

std::shared_ptr<Storage> open_store(StoreConfig config) {
  std::shared_ptr<CredentialKeeper> keeper;
  if (config.credentials) keeper = std::make_shared<CredentialKeeper>(std::move(config.credentials));
  const bool json = config.settings.kind == StoreKind::kGoogleJson;
  auto client = std::make_shared<StoreClient>(std::move(config.settings), std::move(keeper));
  return make_object_store(json ? make_json_api(std::move(client)) : make_xml_api(std::move(client)));
}

}  // namespace

std::shared_ptr<Storage> open_s3_storage(const std::string& bucket_and_prefix, const StorageOptions& options,
                                         CredentialsCallback credentials) {
  return open_store(configure_s3(bucket_and_prefix, options, std::move(credentials), Environment::of_process()));
}

std::shared_ptr<Storage> open_gcs_storage(const std::string& bucket_and_prefix, const StorageOptions& options,
                                          CredentialsCallback credentials) {
  return open_store(configure_gcs(bucket_and_prefix, options, std::move(credentials), Environment::of_process()));
}

}  // namespace torchsnapshot
