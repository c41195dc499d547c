// URLs of servers, and query strings.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace torchsnapshot {

/// scheme://authority/path?query of an HTTP server.
struct HttpUrl {
  std::string scheme;     ///< "http" or "https"
  std::string authority;  ///< host, or host:port where the port is not the scheme's own: what the Host header says
  std::string path;       ///< "" or begins with '/'; as it was written
  std::string query;      ///< without '?'

  [[nodiscard]] std::string text() const {
    return scheme + "://" + authority + path + (query.empty() ? "" : "?" + query);
  }
  /// The host without port; an IPv6 address without brackets.
  [[nodiscard]] std::string host() const;
  friend bool operator==(const HttpUrl&, const HttpUrl&) = default;
};

/// Takes a URL apart. A text without "://" is a host: its scheme is https. Throws Error(kInvalidArgument) for another
/// scheme, a bad port, user information (a secret in disguise; the message does not show it), characters that don't
/// belong into a URL, and a fragment. `what` names the setting in messages.
HttpUrl parse_http_url(std::string_view text, std::string_view what);

/// Names and values of a query, not encoded.
using Query = std::vector<std::pair<std::string, std::string>>;

/// "a=1&b=": percent-encoded and sorted as signatures want it; a parameter without a value keeps its '='.
std::string encode_query(const Query& query);

/// True for IPv4 and IPv6 loopback addresses and "localhost".
bool is_loopback_host(std::string_view host);

}  // namespace torchsnapshot
