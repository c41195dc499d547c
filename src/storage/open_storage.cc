#include "storage/location.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {
namespace {

constexpr std::string_view kKnown =
    "this build has PATH, fs://PATH, memory://NAME, s3://BUCKET/PREFIX and gs://BUCKET/PREFIX";

}  // namespace

std::shared_ptr<Storage> open_storage(const std::string& url, const StorageOptions& options,
                                      const CredentialsCallback& credentials) {
  const StorageUrl parts = parse_storage_url(url);
  if (parts.scheme == "s3") return open_s3_storage(parts.rest, options, credentials);
  if (parts.scheme == "gs") return open_gcs_storage(parts.rest, options, credentials);
  if (credentials && (parts.scheme == "fs" || parts.scheme == "memory")) {
    throw Error(ErrorCode::kInvalidArgument, parts.scheme + ":// has no credentials");
  }
  if (parts.scheme == "fs") return open_fs_storage(parts.rest, options);
  if (parts.scheme == "memory") {
    if (!options.empty()) {
      throw Error(ErrorCode::kInvalidArgument,
                  "unknown storage option '" + options.begin()->first + "': memory:// has no options");
    }
    return open_memory_storage(parts.rest);
  }
  // Only the scheme is shown: a URL may hold a secret.
  throw Error(ErrorCode::kUnsupported, "unknown storage scheme '" + parts.scheme + "://'; " + std::string(kKnown));
}

}  // namespace torchsnapshot
