#include "cloud/settings.h"

#include <algorithm>

#include "core/text.h"
#include "net/encoding.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {

HttpUrl object_url(const StoreSettings& settings, const std::string& region, const std::string& key) {
  HttpUrl url;
  bool path_style = settings.path_style;
  if (settings.endpoint) {
    url = *settings.endpoint;
    while (url.path.ends_with('/')) url.path.pop_back();
  } else {
    url.scheme = "https";
    url.authority = "s3." + region + (region.starts_with("cn-") ? ".amazonaws.com.cn" : ".amazonaws.com");
    // The certificate is good for one level below the domain.
    path_style = path_style || settings.bucket.find('.') != std::string::npos;
  }
  if (path_style) {
    url.path += "/" + percent_encode(settings.bucket);
  } else {
    url.authority = settings.bucket + "." + url.authority;
  }
  url.path += key.empty() && path_style ? "" : "/" + percent_encode(key, true);
  url.query.clear();
  return url;
}

void check_bucket_name(const std::string& bucket) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
           c == '_';
  };
  if (bucket.size() < 3 || bucket.size() > 222 || !std::all_of(bucket.begin(), bucket.end(), allowed) ||
      bucket.find("..") != std::string::npos) {
    throw Error(ErrorCode::kInvalidArgument,
                quote_text(bucket) + " is no name of a bucket (letters, digits, '-', '.', '_'; at least three)");
  }
}

}  // namespace torchsnapshot
