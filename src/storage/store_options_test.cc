#include "storage/store_options.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "storage/testing.h"

namespace torchsnapshot {
namespace {

using namespace std::chrono_literals;

class StoreOptions : public testing::Test {
 protected:
  [[nodiscard]] Environment environment() const {
    return {[variables = variables_](const std::string& name) -> std::optional<std::string> {
      const auto found = variables.find(name);
      return found == variables.end() ? std::nullopt : std::optional(found->second);
    }};
  }
  StoreConfig s3(const StorageOptions& options, const std::string& place = "bucket/a") const {
    return configure_s3(place, options, nullptr, environment());
  }
  StoreConfig gs(const StorageOptions& options, const std::string& place = "bucket/a") const {
    return configure_gcs(place, options, nullptr, environment());
  }
  void refused(const StorageOptions& options, std::initializer_list<std::string_view> parts) const {
    expect_error(ErrorCode::kInvalidArgument, parts, [&] { s3(options); });
  }

  TemporaryFolder home_;
  std::map<std::string, std::string> variables_{{"HOME", home_.path().native()}};
};

TEST_F(StoreOptions, Places) {
  EXPECT_EQ(s3({}, "bucket").settings.url(), "s3://bucket");
  EXPECT_EQ(s3({}, "bucket/").settings.prefix, "");
  EXPECT_EQ(s3({}, "bucket//a/b//").settings.prefix, "a/b");
  EXPECT_EQ(gs({}, "bucket/a/b").settings.url(), "gs://bucket/a/b");
  for (const char* bad : {"", "/", "/a", "ab", "a..b/x", "bu cket",
                          "b\xc3\xa4"
                          "cket",
                          "bucket?x=1"}) {
    expect_error(ErrorCode::kInvalidArgument, {"no name of a bucket"}, [&] { s3({}, bad); });
  }
}

TEST_F(StoreOptions, Addresses) {
  const auto address = [](const StoreConfig& config, const std::string& key) {
    return object_url(config.settings, config.settings.region, key).text();
  };
  EXPECT_EQ(address(s3({}), "k"), "https://bucket.s3.us-east-1.amazonaws.com/k");
  EXPECT_EQ(address(s3({{"region", "eu-west-1"}}), ""), "https://bucket.s3.eu-west-1.amazonaws.com/");
  EXPECT_EQ(address(s3({{"region", "cn-north-1"}}), "k"), "https://bucket.s3.cn-north-1.amazonaws.com.cn/k");
  EXPECT_EQ(address(s3({}, "my.bucket/x"), "k"), "https://s3.us-east-1.amazonaws.com/my.bucket/k");
  EXPECT_EQ(address(s3({{"addressing_style", "path"}}), "k"), "https://s3.us-east-1.amazonaws.com/bucket/k");
  EXPECT_EQ(address(s3({{"endpoint_url", "http://minio:9000/"}}), "a b/\xc3\xa4+"),
            "http://minio:9000/bucket/a%20b/%C3%A4%2B");
  EXPECT_EQ(address(s3({{"endpoint_url", "https://x.com/s3"}}), ""), "https://x.com/s3/bucket");
  EXPECT_EQ(address(s3({{"endpoint_url", "https://x.com"}, {"addressing_style", "virtual"}}), "k"),
            "https://bucket.x.com/k");
  EXPECT_EQ(address(gs({{"token", "t"}}), "k"), "https://storage.googleapis.com/bucket/k");
}

TEST_F(StoreOptions, TheEnvironmentAndProfilesOfAws) {
  std::filesystem::create_directories(home_.path() / ".aws");
  std::ofstream(home_.path() / ".aws/config") << "[default]\nregion = r-default\nendpoint_url = "
                                                 "http://of-profile\nca_bundle = /ca\n[profile p]\nregion = r-p\n";
  EXPECT_EQ(s3({}).settings.region, "r-default");
  EXPECT_EQ(s3({}).settings.endpoint->authority, "of-profile");
  EXPECT_EQ(s3({}).settings.ca_bundle, "/ca");
  EXPECT_EQ(s3({{"profile", "p"}}).settings.region, "r-p");
  variables_["AWS_PROFILE"] = "p";
  EXPECT_EQ(s3({}).settings.region, "r-p");
  variables_["AWS_DEFAULT_REGION"] = "r-1";
  EXPECT_EQ(s3({}).settings.region, "r-1");
  variables_["AWS_REGION"] = "r-2";
  EXPECT_EQ(s3({}).settings.region, "r-2");
  EXPECT_EQ(s3({{"region", "r-3"}}).settings.region, "r-3");
  variables_["AWS_ENDPOINT_URL"] = "http://a";
  EXPECT_EQ(s3({}).settings.endpoint->authority, "a");
  variables_["AWS_ENDPOINT_URL_S3"] = "http://b:9000";
  EXPECT_EQ(s3({}).settings.endpoint->authority, "b:9000");
  EXPECT_EQ(s3({{"endpoint_url", "http://c"}}).settings.endpoint->authority, "c");
  variables_["AWS_CA_BUNDLE"] = "/other";
  EXPECT_EQ(s3({}).settings.ca_bundle, "/other");
  EXPECT_EQ(s3({{"ca_bundle", "/own"}}).settings.ca_bundle, "/own");
}

TEST_F(StoreOptions, Values) {
  const StoreSettings all = s3({{"part_size", "64 MiB"},
                                {"concurrency", "3"},
                                {"connect_timeout", "1.5"},
                                {"stall_timeout", "7"},
                                {"retry_timeout", "60"},
                                {"checksum", "none"},
                                {"sign_payload", "True"},
                                {"storage_class", "IA"},
                                {"server_side_encryption", "aws:kms"},
                                {"sse_kms_key_id", "k"},
                                {"request_payer", "requester"}})
                                .settings;
  EXPECT_EQ(all.part_bytes, 64ULL << 20);
  EXPECT_EQ(all.concurrency, 3U);
  EXPECT_EQ(all.connect_timeout, 1500ms);
  EXPECT_EQ(all.stall_timeout, 7000ms);
  EXPECT_EQ(all.retry_timeout, 60'000ms);
  EXPECT_FALSE(all.send_checksums);
  EXPECT_TRUE(all.sign_payload);
  EXPECT_EQ(all.storage_class, "IA");
  EXPECT_TRUE(all.requester_pays);
  for (const char* size : {"16777216", "16MB", "16m", "16 mib", "16384k"}) {
    EXPECT_EQ(s3({{"part_size", size}}).settings.part_bytes, 16ULL << 20) << size;
  }
  refused({{"part_size", "5242879"}}, {"part_size", "5242880"});
  refused({{"part_size", "6GiB"}}, {"part_size"});
  refused({{"part_size", "99999999999999999999"}}, {"part_size"});
  refused({{"part_size", "16 parsecs"}}, {"part_size", "16MiB"});
  refused({{"concurrency", "0"}}, {"concurrency"});
  refused({{"stall_timeout", "-1"}}, {"stall_timeout", "seconds"});
  refused({{"stall_timeout", "nan"}}, {"stall_timeout"});
  refused({{"checksum", "md5"}}, {"checksum", "crc32c, none"});
  refused({{"addressing_style", "host"}}, {"auto, path, virtual"});
  refused({{"anonymous", "perhaps"}}, {"anonymous", "true nor false"});
  refused({{"request_payer", "me"}}, {"requester"});
  refused({{"endpoint_url", "ftp://x"}}, {"endpoint_url", "http://"});
}

TEST_F(StoreOptions, NamesAndTheirOtherNames) {
  EXPECT_EQ(s3({{"region_name", "r"}, {"aws_access_key_id", "a"}, {"aws_secret_access_key", "s"}}).settings.region,
            "r");
  refused({{"regoin", "x"}}, {"unknown storage option 'regoin'", "s3:// knows", "region", "part_size"});
  refused({{"token", "x"}}, {"'token'", "s3://"});
  refused({{"region", "a"}, {"region_name", "b"}}, {"region", "twice"});
  expect_error(ErrorCode::kInvalidArgument, {"'region'", "gs:// knows", "credentials_file"}, [&] {
    gs({{"region", "x"}});
  });
}

TEST_F(StoreOptions, CredentialsOfTheOptions) {
  EXPECT_EQ(s3({{"anonymous", "true"}}).credentials, nullptr);
  const auto fixed = s3({{"access_key_id", "a"}, {"secret_access_key", "s"}, {"session_token", "t"}}).credentials;
  EXPECT_EQ(fixed->name(), "the storage options");
  EXPECT_EQ(fixed->fetch({}).key->session_token, "t");
  refused({{"access_key_id", "a"}}, {"secret_access_key go together"});
  refused({{"session_token", "a"}}, {"goes with access_key_id"});
  refused({{"anonymous", "1"}, {"profile", "p"}}, {"only one of"});
  EXPECT_EQ(gs({{"token", "t"}}).credentials->fetch({}).bearer, "t");
  expect_error(ErrorCode::kInvalidArgument, {"only one of"}, [&] { gs({{"token", "t"}, {"anonymous", "1"}}); });
  expect_error(ErrorCode::kInvalidArgument, {"without encryption", "example.com"}, [&] {
    gs({{"token", "t"}, {"endpoint_url", "http://example.com"}});
  });
  EXPECT_EQ(gs({{"anonymous", "1"}, {"endpoint_url", "http://example.com"}}).credentials, nullptr);
}

TEST_F(StoreOptions, Emulators) {
  variables_["STORAGE_EMULATOR_HOST"] = "localhost:9023";
  const StoreConfig config = gs({});
  EXPECT_EQ(config.settings.kind, StoreKind::kGoogleJson);
  EXPECT_EQ(config.settings.endpoint->text(), "http://localhost:9023");
  EXPECT_EQ(config.credentials, nullptr);
  variables_["STORAGE_EMULATOR_HOST"] = "https://e/";
  EXPECT_EQ(gs({}).settings.endpoint->scheme, "https");
  EXPECT_EQ(gs({{"api", "xml"}}).settings.kind, StoreKind::kGoogleXml);
  variables_.clear();
  EXPECT_EQ(gs({{"token", "t"}}).settings.kind, StoreKind::kGoogleXml);
}

}  // namespace
}  // namespace torchsnapshot
