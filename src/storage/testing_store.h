// Object stores on the test server, for tests.
#pragma once

#include <memory>
#include <string>

#include "net/testing_server.h"
#include "storage/object_store.h"

namespace torchsnapshot {

inline const std::string kSecret = "secret/of+the=test";

/// One server for the whole program, started when it is first needed.
inline TestServer& server() {
  static TestServer server("object_server.py", {"--bucket", "bucket", "--access-key", "AKIDTEST", "--secret-key",
                                                kSecret, "--token", "good-token"});
  return server;
}

inline std::shared_ptr<CredentialKeeper> keeper_for(StoreKind kind) {
  Credentials credentials;
  if (kind == StoreKind::kS3) {
    credentials.key = AwsKey{"AKIDTEST", kSecret, ""};
  } else {
    credentials.bearer = "good-token";
  }
  return std::make_shared<CredentialKeeper>(fixed_credentials(credentials, "the test"));
}

inline StoreSettings settings_for(StoreKind kind, const std::string& prefix) {
  StoreSettings settings;
  settings.kind = kind;
  settings.bucket = "bucket";
  settings.prefix = prefix;
  settings.endpoint = parse_http_url(server().url(), "endpoint");
  settings.path_style = true;
  settings.part_bytes = 5ULL << 20;
  return settings;
}

inline std::shared_ptr<ObjectApi> api_of(const StoreSettings& settings) {
  auto client = std::make_shared<StoreClient>(settings, keeper_for(settings.kind));
  return settings.kind == StoreKind::kGoogleJson ? make_json_api(std::move(client)) : make_xml_api(std::move(client));
}

inline std::shared_ptr<Storage> store(const StoreSettings& settings) {
  return make_object_store(api_of(settings));
}

}  // namespace torchsnapshot
