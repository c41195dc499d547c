// AWS Signature Version 4, in the Authorization header. A pure function that also shows its steps, so that it can be
// held against published ones.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "net/url.h"

namespace torchsnapshot {

struct AwsKey {
  std::string access_key_id;
  std::string secret_access_key;
  std::string session_token;  ///< "" for a long-term key
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

/// A request as it will be sent. All headers given are signed, so they must reach the server as they are.
struct SigningInput {
  std::string method;
  std::string path;          ///< percent-encoded once, as it is sent; "" counts as "/"
  Query query;               ///< not encoded
  HttpHeaders headers;       ///< with Host and X-Amz-Date
  std::string payload_hash;  ///< hex SHA-256 of the body, or "UNSIGNED-PAYLOAD"
  std::string amz_date;      ///< "20150830T123600Z"
  std::string region;
  std::string service;  ///< "s3", "sts"
};

struct Signature {
  std::string canonical_request;
  std::string string_to_sign;
  std::string signature;      ///< 64 hex digits
  std::string authorization;  ///< value of the Authorization header
};

Signature sign_v4(const SigningInput& input, const AwsKey& key);

}  // namespace torchsnapshot
