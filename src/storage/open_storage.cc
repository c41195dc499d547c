#include "storage/location.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {
namespace {

constexpr std::string_view kKnown = "this build has PATH, fs://PATH and memory://NAME";

}  // namespace

std::shared_ptr<Storage> open_storage(const std::string& url, const StorageOptions& options) {
  const StorageUrl parts = parse_storage_url(url);
  if (parts.scheme == "fs") return open_fs_storage(parts.rest, options);
  if (parts.scheme == "memory") {
    if (!options.empty()) {
      throw Error(ErrorCode::kInvalidArgument,
                  "unknown storage option '" + options.begin()->first + "': memory:// has no options");
    }
    return open_memory_storage(parts.rest);
  }
  // Only the scheme is shown: a URL may hold a secret.
  const bool is_planned = parts.scheme == "s3" || parts.scheme == "gs";
  throw Error(ErrorCode::kUnsupported, (is_planned ? "storage at " + parts.scheme + ":// is not built into this version"
                                                   : "unknown storage scheme '" + parts.scheme + "://'") +
                                           "; " + std::string(kKnown));
}

}  // namespace torchsnapshot
