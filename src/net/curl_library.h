// libcurl, loaded at run time the first time a URL of an object store is used: a package that brought its own would be
// several times as large, with 36 libraries behind it.
#pragma once

#include <cstddef>

#include "net/curl_abi.h"

namespace torchsnapshot {

/// The functions of libcurl that are used, by their names without "curl_".
struct CurlLibrary {
  int (*global_init)(long flags);
  void* (*easy_init)();
  void (*easy_cleanup)(void* easy);
  void (*easy_reset)(void* easy);
  int (*easy_setopt)(void* easy, int option, ...);
  int (*easy_getinfo)(void* easy, int info, ...);
  const char* (*easy_strerror)(int code);
  void* (*slist_append)(void* list, const char* text);
  void (*slist_free_all)(void* list);
  void* (*multi_init)();
  int (*multi_cleanup)(void* multi);
  int (*multi_add_handle)(void* multi, void* easy);
  int (*multi_remove_handle)(void* multi, void* easy);
  int (*multi_perform)(void* multi, int* running);
  int (*multi_poll)(void* multi, void* extra, unsigned extra_count, int timeout_ms, int* ready);
  int (*multi_wakeup)(void* multi);
  curl::Message* (*multi_info_read)(void* multi, int* left);
};

/// The library, loaded once per process. Throws Error(kUnsupported), each time anew, when there is none that can be
/// used (7.68 is the oldest); the message names the package. TORCHSNAPSHOT_LIBCURL names another file to load.
/// Thread-safe.
const CurlLibrary& curl_library();

}  // namespace torchsnapshot
