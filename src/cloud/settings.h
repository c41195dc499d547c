// What is to be known about a bucket and how to talk to it, independent of where the settings come from.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "net/url.h"

namespace torchsnapshot {

enum class StoreKind : std::uint8_t {
  kS3,         ///< XML API, AWS signatures
  kGoogleXml,  ///< the XML API of Google Cloud Storage, bearer tokens
  kGoogleJson  ///< its JSON API, for emulators
};

struct StoreSettings {
  StoreKind kind = StoreKind::kS3;
  std::string bucket;
  std::string prefix;  ///< of all keys, without '/' at the end; "": none

  std::optional<HttpUrl> endpoint{};  ///< nothing: that of AWS for the region
  std::string region = "us-east-1";
  bool path_style = false;  ///< the bucket is in the path instead of the host name

  std::uint64_t part_bytes = 16ULL << 20;
  std::uint32_t concurrency = 16;  ///< requests at once where one call needs many (sizes, remove)
  std::chrono::milliseconds connect_timeout{10'000};
  std::chrono::milliseconds stall_timeout{20'000};
  std::chrono::milliseconds retry_timeout{180'000};  ///< no attempt starts later than this after the first
  std::chrono::milliseconds retry_base{100};         ///< the longest first pause
  std::string ca_bundle{};

  bool send_checksums = true;  ///< CRC-32C of bodies in a header, which the store compares
  bool sign_payload = false;   ///< SHA-256 of bodies in the signature
  std::string storage_class{};
  std::string server_side_encryption{};
  std::string sse_kms_key_id{};
  bool requester_pays = false;
  std::string user_project{};  ///< Google: who pays

  /// "s3://bucket/prefix"
  [[nodiscard]] std::string url() const {
    return std::string(kind == StoreKind::kS3 ? "s3://" : "gs://") + bucket + (prefix.empty() ? "" : "/" + prefix);
  }
};

/// The server and the path of a bucket's key ("": of the bucket itself), percent-encoded.
HttpUrl object_url(const StoreSettings& settings, const std::string& region, const std::string& key);

/// Throws Error(kInvalidArgument) for what no bucket can be called.
void check_bucket_name(const std::string& bucket);

}  // namespace torchsnapshot
