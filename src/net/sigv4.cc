#include "net/sigv4.h"

#include <map>

#include "net/encoding.h"
#include "net/sha256.h"

namespace torchsnapshot {
namespace {

/// Without blanks at the ends, and with single spaces inside.
std::string normalize_value(std::string_view value) {
  std::string normal;
  for (const char c : trim_ascii(value)) {
    const bool blank = c == ' ' || c == '\t';
    if (blank && normal.ends_with(' ')) continue;
    normal += blank ? ' ' : c;
  }
  return normal;
}

}  // namespace

Signature sign_v4(const SigningInput& input, const AwsKey& key) {
  std::map<std::string, std::string> headers;  // sorted; values of one name in the order they were given
  for (const auto& [name, value] : input.headers) {
    const auto [position, is_new] = headers.try_emplace(to_lower_ascii(name));
    position->second += (is_new ? "" : ",") + normalize_value(value);
  }
  std::string header_lines;
  std::string signed_names;
  for (const auto& [name, value] : headers) {
    header_lines.append(name).append(":").append(value).append("\n");
    signed_names.append(signed_names.empty() ? "" : ";").append(name);
  }

  Signature result;
  result.canonical_request = input.method + "\n" + (input.path.empty() ? "/" : input.path) + "\n" +
                             encode_query(input.query) + "\n" + header_lines + "\n" + signed_names + "\n" +
                             input.payload_hash;
  const std::string day = input.amz_date.substr(0, 8);
  const std::string scope = day + "/" + input.region + "/" + input.service + "/aws4_request";
  result.string_to_sign =
      "AWS4-HMAC-SHA256\n" + input.amz_date + "\n" + scope + "\n" + to_hex(sha256(result.canonical_request));

  Sha256Digest signing_key = hmac_sha256(as_octets("AWS4" + key.secret_access_key), day);
  signing_key = hmac_sha256(signing_key, input.region);
  signing_key = hmac_sha256(signing_key, input.service);
  signing_key = hmac_sha256(signing_key, "aws4_request");
  result.signature = to_hex(hmac_sha256(signing_key, result.string_to_sign));
  result.authorization = "AWS4-HMAC-SHA256 Credential=" + key.access_key_id + "/" + scope +
                         ", SignedHeaders=" + signed_names + ", Signature=" + result.signature;
  return result;
}

}  // namespace torchsnapshot
