// The object stores against the test server: the conformance suite, and what is special about them.
#include "storage/object_store.h"

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "net/testing_server.h"
#include "storage/conformance.h"
#include "storage/part_grid.h"
#include "storage/testing.h"

namespace torchsnapshot {
namespace {

using namespace std::chrono_literals;

const std::string kSecret = "secret/of+the=test";

/// One server for the whole program, started when it is first needed.
TestServer& server() {
  static TestServer server("object_server.py", {"--bucket", "bucket", "--access-key", "AKIDTEST", "--secret-key",
                                                kSecret, "--token", "good-token"});
  return server;
}

std::shared_ptr<CredentialKeeper> keeper_for(StoreKind kind) {
  Credentials credentials;
  if (kind == StoreKind::kS3) {
    credentials.key = AwsKey{"AKIDTEST", kSecret, ""};
  } else {
    credentials.bearer = "good-token";
  }
  return std::make_shared<CredentialKeeper>(fixed_credentials(credentials, "the test"));
}

StoreSettings settings_for(StoreKind kind, const std::string& prefix) {
  StoreSettings settings;
  settings.kind = kind;
  settings.bucket = "bucket";
  settings.prefix = prefix;
  settings.endpoint = parse_http_url(server().url(), "endpoint");
  settings.path_style = true;
  settings.part_bytes = 5ULL << 20;
  return settings;
}

std::shared_ptr<ObjectApi> api_of(const StoreSettings& settings) {
  auto client = std::make_shared<StoreClient>(settings, keeper_for(settings.kind));
  return settings.kind == StoreKind::kGoogleJson ? make_json_api(std::move(client)) : make_xml_api(std::move(client));
}

std::shared_ptr<Storage> store(const StoreSettings& settings) {
  return make_object_store(api_of(settings));
}

ConformanceBackend backend(const std::string& name, StoreKind kind) {
  return {name, [name, kind] {
            static std::atomic<int> places = 0;
            const std::string prefix = "conformance/" + name + std::to_string(++places);
            return [kind, prefix] { return store(settings_for(kind, prefix)); };
          }};
}

INSTANTIATE_TEST_SUITE_P(ObjectStore, StorageConformance,
                         testing::Values(backend("S3", StoreKind::kS3), backend("GcsXml", StoreKind::kGoogleXml),
                                         backend("GcsJson", StoreKind::kGoogleJson)),
                         backend_name);

}  // namespace
}  // namespace torchsnapshot
