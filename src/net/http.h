// HTTP/1.1 requests on libcurl. One request is one blocking call; several threads make several at once.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>

#include "net/sigv4.h"

namespace torchsnapshot {

struct HttpResponse {
  int status = 0;             ///< 0: none came
  HttpHeaders headers;        ///< names in lower case
  std::string text;           ///< the body, unless it went into the sink
  std::uint64_t in_sink = 0;  /// bytes of the body that went into the sink

  /// The value of the first header of that name (lower case), or "".
  [[nodiscard]] std::string_view header(std::string_view name) const noexcept;
  /// A header that is a number; nothing when it is absent or malformed.
  [[nodiscard]] std::optional<std::uint64_t> header_number(std::string_view name) const noexcept;
};

struct HttpRequest {
  std::string method = "GET";
  std::string url;
  HttpHeaders headers;
  std::span<const std::byte> body;  ///< sent from where it lies; Content-Length is set for PUT and POST
  /// Called once the whole body has been handed to the connection; again when it has to be sent anew.
  std::function<void()> on_sent;
  /// Where the body of the response goes, if `into_sink` says so after its header.
  std::span<std::byte> sink;
  std::function<bool(const HttpResponse&)> into_sink;
  /// How a piece of the body, `src`, is brought to its place in the sink; copied when there is no function. What it
  /// throws ends the request and comes out of perform().
  std::function<void(std::span<std::byte> dst, std::span<const std::byte> src)> place;
  /// More bytes of a body than this, outside the sink, are TransportFault::kTooLarge.
  std::uint64_t max_text = 16ULL << 20;
  bool bypass_proxy = false;  ///< for metadata servers of this machine
  /// Longest time without a byte moved; 0: the client's.
  std::chrono::milliseconds stall_timeout{0};
};

/// How a request ended that has no complete response.
enum class TransportFault : std::uint8_t {
  kNone,
  kCancelled,    ///< the stop token
  kStalled,      ///< no byte moved for the stall timeout
  kTooSlow,      ///< bytes moved, but the request's time is up
  kResolve,      ///< no address for the host name
  kConnect,      ///< refused, unreachable, or no answer within the connect timeout
  kTls,          ///< the TLS handshake failed
  kCertificate,  ///< the server's certificate is not trusted
  kReset,        ///< the connection broke
  kCutOff,       ///< it ended before the body did
  kSurplus,      ///< more bytes than the sink has room for
  kTooLarge,     ///< more bytes than max_text
  kOther,
};

/// "connection reset", as messages say it.
std::string_view to_string(TransportFault fault) noexcept;

struct HttpResult {
  TransportFault fault = TransportFault::kNone;
  std::string detail;  ///< libcurl's words
  HttpResponse response;
};

struct HttpOptions {
  std::string user_agent = "torchsnapshot";
  std::string ca_bundle{};  ///< file with certificates; "": the system's
  std::chrono::milliseconds connect_timeout{10'000};
  std::chrono::milliseconds stall_timeout{20'000};
  /// A request may take 10 stall timeouts and the time that its bytes take at this rate.
  std::uint64_t min_bytes_per_second = 8 << 10;
};

/// Keeps connections alive between requests. Thread-safe; a forked child makes connections of its own.
class HttpClient {
 public:
  /// Throws Error(kUnsupported) when there is no libcurl.
  explicit HttpClient(HttpOptions options);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  /// Never throws for what a network or a server does; redirects are not followed. Throws Error(kNoSpace) without
  /// memory, and what the request's functions throw.
  HttpResult perform(const HttpRequest& request, const std::stop_token& stop);

  /// Connections made so far would be the server's to count; this counts the requests.
  [[nodiscard]] std::uint64_t requests() const noexcept;

 private:
  struct Pool;
  const HttpOptions options_;
  std::unique_ptr<Pool> pool_;
};

/// The file with the certificates of authorities: `chosen` if not empty, else that of SSL_CERT_FILE or
/// CURL_CA_BUNDLE, else "" where libcurl's own default is there, else the first of the distributions' usual ones.
std::string find_ca_bundle(const std::string& chosen);

}  // namespace torchsnapshot
