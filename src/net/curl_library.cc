#include "net/curl_library.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "core/dynamic_library.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr const char* kRemedy =
    "s3:// and gs:// need libcurl 7.68 or newer at run time (libcurl.so.4): apt-get install libcurl4, dnf install "
    "libcurl, or set TORCHSNAPSHOT_LIBCURL to the file";

CurlLibrary load() {
  std::vector<std::string> names = {"libcurl.so.4", "libcurl-gnutls.so.4"};
  if (const char* const chosen = std::getenv("TORCHSNAPSHOT_LIBCURL"); chosen != nullptr && *chosen != '\0') {
    names = {chosen};
  }
  const DynamicLibrary library(names, kRemedy);
  CurlLibrary curl{};
  library.find("curl_global_init", curl.global_init);
  library.find("curl_easy_init", curl.easy_init);
  library.find("curl_easy_cleanup", curl.easy_cleanup);
  library.find("curl_easy_reset", curl.easy_reset);
  library.find("curl_easy_setopt", curl.easy_setopt);
  library.find("curl_easy_getinfo", curl.easy_getinfo);
  library.find("curl_easy_strerror", curl.easy_strerror);
  library.find("curl_slist_append", curl.slist_append);
  library.find("curl_slist_free_all", curl.slist_free_all);
  library.find("curl_multi_init", curl.multi_init);
  library.find("curl_multi_cleanup", curl.multi_cleanup);
  library.find("curl_multi_add_handle", curl.multi_add_handle);
  library.find("curl_multi_remove_handle", curl.multi_remove_handle);
  library.find("curl_multi_perform", curl.multi_perform);
  library.find("curl_multi_poll", curl.multi_poll);
  library.find("curl_multi_wakeup", curl.multi_wakeup);
  library.find("curl_multi_info_read", curl.multi_info_read);
  if (const int failed = curl.global_init(curl::kGlobalAll); failed != curl::kOk) {
    throw Error(ErrorCode::kUnsupported, "libcurl can't be started: " + std::string(curl.easy_strerror(failed)));
  }
  return curl;
}

}  // namespace

const CurlLibrary& curl_library() {
  static const CurlLibrary library = load();  // an exception leaves it unloaded; the next call tries again
  return library;
}

}  // namespace torchsnapshot
