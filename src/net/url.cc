#include "net/url.h"

#include <algorithm>
#include <charconv>

#include "net/encoding.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

[[noreturn]] void refuse(std::string_view what, std::string_view why) {
  throw Error(ErrorCode::kInvalidArgument, std::string(what) + ": " + std::string(why));
}

bool is_host_char(char c) noexcept {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
}

/// Splits host and port; the brackets of an IPv6 address stay.
std::pair<std::string_view, std::string_view> split_port(std::string_view authority) {
  const auto bracket = authority.rfind(']');
  const auto colon = authority.rfind(':');
  if (colon == std::string_view::npos || (bracket != std::string_view::npos && colon < bracket)) return {authority, {}};
  return {authority.substr(0, colon), authority.substr(colon + 1)};
}

bool is_ipv6_literal(std::string_view host) {
  return host.size() > 4 && host.front() == '[' && host.back() == ']' &&
         host.substr(1, host.size() - 2).find_first_not_of("0123456789abcdefABCDEF:.") == std::string_view::npos;
}

}  // namespace

std::string HttpUrl::host() const {
  std::string_view host = split_port(authority).first;
  if (host.starts_with('[')) host = host.substr(1, host.size() - 2);
  return std::string(host);
}

HttpUrl parse_http_url(std::string_view text, std::string_view what) {
  HttpUrl url;
  const auto separator = text.find("://");
  url.scheme = separator == std::string_view::npos ? "https" : to_lower_ascii(text.substr(0, separator));
  std::string_view rest = separator == std::string_view::npos ? text : text.substr(separator + 3);
  if (url.scheme != "http" && url.scheme != "https") refuse(what, "it must be an http:// or https:// URL");
  for (const char c : text) {
    if (static_cast<unsigned char>(c) <= ' ' || c == 0x7f) refuse(what, "a URL has no spaces or control characters");
  }
  if (rest.find('#') != std::string_view::npos) refuse(what, "a '#' has no meaning here");
  const auto question = rest.find('?');
  if (question != std::string_view::npos) {
    url.query = rest.substr(question + 1);
    rest = rest.substr(0, question);
  }
  const auto slash = std::min(rest.find('/'), rest.size());
  url.path = rest.substr(slash);
  const std::string_view authority = rest.substr(0, slash);
  if (authority.find('@') != std::string_view::npos) {
    refuse(what, "it has a user name or password in it, which is not supported");
  }
  const auto [host, port] = split_port(authority);
  const bool is_name = !host.empty() && std::all_of(host.begin(), host.end(), is_host_char);
  if (!is_name && !is_ipv6_literal(host)) refuse(what, "'" + std::string(host) + "' is no host name");
  url.authority = to_lower_ascii(host);
  if (!port.empty() || authority.ends_with(':')) {
    unsigned number = 0;
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
    if (error != std::errc() || end != port.data() + port.size() || number == 0 || number > 65535) {
      refuse(what, "'" + std::string(port) + "' is no port");
    }
    if (number != (url.scheme == "http" ? 80U : 443U)) url.authority += ":" + std::to_string(number);
  }
  return url;
}

std::string encode_query(const Query& query) {
  std::vector<std::pair<std::string, std::string>> encoded;
  encoded.reserve(query.size());
  for (const auto& [name, value] : query) encoded.emplace_back(percent_encode(name), percent_encode(value));
  std::sort(encoded.begin(), encoded.end());
  std::string text;
  for (const auto& [name, value] : encoded) {
    if (!text.empty()) text += '&';
    text += name;
    text += '=';
    text += value;
  }
  return text;
}

bool is_loopback_host(std::string_view host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

}  // namespace torchsnapshot
