#include "net/sigv4.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace torchsnapshot {
namespace {

const AwsKey kSuiteKey{"AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", ""};
const AwsKey kS3Key{"AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", ""};
constexpr const char* kEmpty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

SigningInput suite_request(const std::string& method, Query query = {}) {
  return {method,           "/",
          std::move(query), {{"Host", "example.amazonaws.com"}, {"X-Amz-Date", "20150830T123600Z"}},
          kEmpty,           "20150830T123600Z",
          "us-east-1",      "service"};
}

// AWS's test suite for version 4.
TEST(SigV4, SuiteGetVanilla) {
  const Signature got = sign_v4(suite_request("GET"), kSuiteKey);
  EXPECT_EQ(
      got.canonical_request,
      "GET\n/\n\nhost:example.amazonaws.com\nx-amz-date:20150830T123600Z\n\nhost;x-amz-date\n" + std::string(kEmpty));
  EXPECT_EQ(got.string_to_sign,
            "AWS4-HMAC-SHA256\n20150830T123600Z\n20150830/us-east-1/service/aws4_request\n"
            "bb579772317eb040ac9ed261061d46c1f17a8133879d6129b6e1c25292927e63");
  EXPECT_EQ(
      got.authorization,
      "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
      "SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31");
}

TEST(SigV4, SuiteOthers) {
  EXPECT_EQ(sign_v4(suite_request("POST"), kSuiteKey).signature,
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b");
  EXPECT_EQ(sign_v4(suite_request("GET", {{"Param2", "value2"}, {"Param1", "value1"}}), kSuiteKey).signature,
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500");
}

// The examples of the S3 documentation, "Signature Calculations for the Authorization Header".
SigningInput s3_request(const std::string& method, const std::string& path, Query query, HttpHeaders headers,
                        const std::string& payload) {
  headers.emplace_back("Host", "examplebucket.s3.amazonaws.com");
  headers.emplace_back("x-amz-content-sha256", payload);
  headers.emplace_back("x-amz-date", "20130524T000000Z");
  return {method, path, std::move(query), std::move(headers), payload, "20130524T000000Z", "us-east-1", "s3"};
}

TEST(SigV4, S3Documentation) {
  const Signature get = sign_v4(s3_request("GET", "/test.txt", {}, {{"Range", "bytes=0-9"}}, kEmpty), kS3Key);
  EXPECT_NE(get.string_to_sign.find("7344ae5b7ee6c3e7e6b0fe0640412a37625d1fbfff95c48bbb2dc43964946972"),
            std::string::npos);
  EXPECT_EQ(get.signature, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
  EXPECT_EQ(
      sign_v4(s3_request("PUT", "/test%24file.text", {},
                         {{"Date", "Fri, 24 May 2013 00:00:00 GMT"}, {"x-amz-storage-class", "REDUCED_REDUNDANCY"}},
                         "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"),
              kS3Key)
          .signature,
      "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
  EXPECT_EQ(sign_v4(s3_request("GET", "/", {{"lifecycle", ""}}, {}, kEmpty), kS3Key).signature,
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
  EXPECT_EQ(sign_v4(s3_request("GET", "/", {{"max-keys", "2"}, {"prefix", "J"}}, {}, kEmpty), kS3Key).signature,
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
}

TEST(SigV4, AgreesWithBotocore) {
  std::ifstream file(std::filesystem::path(__FILE__).parent_path() / "../../tests/data/sigv4/botocore.json");
  ASSERT_TRUE(file);
  const nlohmann::json cases = nlohmann::json::parse(file);
  ASSERT_EQ(cases.size(), 400U);
  for (const auto& one : cases) {
    SigningInput input{one["method"],
                       one["path"],
                       one["query"].get<Query>(),
                       one["headers"].get<HttpHeaders>(),
                       one["payload"],
                       one["amz_date"],
                       one["region"],
                       "s3"};
    const AwsKey key{one["key"][0], one["key"][1], one["key"][2]};
    if (!key.session_token.empty()) input.headers.emplace_back("X-Amz-Security-Token", key.session_token);
    EXPECT_EQ(sign_v4(input, key).authorization, one["authorization"].get<std::string>()) << one.dump();
  }
}

}  // namespace
}  // namespace torchsnapshot
