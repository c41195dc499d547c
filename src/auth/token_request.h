// Requests to the servers that give out credentials.
#pragma once

#include <memory>
#include <stop_token>
#include <string>

#include "auth/credentials.h"
#include "net/http.h"
#include "net/json.h"
#include "net/retry.h"

namespace torchsnapshot {

struct TokenRequest {
  std::string what{};  ///< who is asked, for messages: "STS", "the metadata server at 169.254.169.254"
  std::string method = "GET";
  std::string url{};
  HttpHeaders headers{};
  std::string body{};
  bool is_local = false;  ///< a metadata server: no proxy, short limits
};

/// Asks token servers. Thread-safe.
class TokenClient {
 public:
  explicit TokenClient(std::string ca_bundle);
  /// The body of a success. Throws Error(kPermissionDenied) with the server's code and message, and no secret;
  /// Error(kCancelled).
  std::string ask(const TokenRequest& request, const std::stop_token& stop);

 private:
  HttpClient remote_;
  HttpClient local_;
};

/// Throws Error(kInvalidArgument) unless the URL is https, or http to this machine: what goes there is a secret.
void check_token_url(const std::string& url, const std::string& what);

/// The field of a token server's answer. Throws Error(kPermissionDenied) that names `what` when it is missing.
std::string need_field(const JsonValue& answer, const std::string& name, const std::string& what);

}  // namespace torchsnapshot
