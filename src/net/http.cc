#include "net/http.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "net/curl_library.h"
#include "net/encoding.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr long kReceiveBuffer = 512 << 10;  // the most that every libcurl takes
constexpr long kSendBuffer = 1 << 20;

/// An easy handle with a multi handle around it, which keeps its connections and can be woken by another thread.
struct Slot {
  explicit Slot(const CurlLibrary& library) : curl(library), easy(library.easy_init()), multi(library.multi_init()) {
    if (easy == nullptr || multi == nullptr) {
      close();
      throw Error(ErrorCode::kNoSpace, "no memory for an HTTP connection");
    }
  }
  ~Slot() { close(); }
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;

  void close() const {
    if (easy != nullptr) curl.easy_cleanup(easy);
    if (multi != nullptr) curl.multi_cleanup(multi);
  }

  const CurlLibrary& curl;
  void* easy;
  void* multi;
};

/// One request under way; what libcurl's callbacks work on.
struct Exchange {
  const HttpRequest& request;
  HttpResponse response;
  std::size_t sent = 0;
  std::uint64_t moved = 0;  // bytes in both directions, for the detection of stalls
  bool body_began = false;
  bool sinking = false;
  TransportFault refused = TransportFault::kNone;
  std::exception_ptr thrown;  // by a function of the request: it must not pass through libcurl

  // A short count makes libcurl end the transfer.
  std::size_t on_body(const std::byte* data, std::size_t size) {
    moved += size;
    if (!body_began) {
      body_began = true;
      sinking = request.into_sink && request.into_sink(response);
    }
    if (sinking) {
      if (size > request.sink.size() - response.in_sink) {
        refused = TransportFault::kSurplus;
        return 0;
      }
      const auto dst = request.sink.subspan(response.in_sink, size);
      if (request.place) {
        request.place(dst, {data, size});
      } else {
        std::memcpy(dst.data(), data, size);
      }
      response.in_sink += size;
      return size;
    }
    if (size > request.max_text - std::min<std::uint64_t>(request.max_text, response.text.size())) {
      refused = TransportFault::kTooLarge;
      return 0;
    }
    response.text.append(reinterpret_cast<const char*>(data), size);
    return size;
  }

  std::size_t on_header(std::string_view line) {
    moved += line.size();
    if (line.starts_with("HTTP/")) {  // a new response: what came before was a 100
      response.headers.clear();
      const auto space = line.find(' ');
      const std::string_view code = line.substr(std::min(space + 1, line.size())).substr(0, 3);
      response.status = 0;
      std::from_chars(code.data(), code.data() + code.size(), response.status);
      return line.size();
    }
    const auto colon = line.find(':');
    if (colon != std::string_view::npos && response.headers.size() < 1000) {
      response.headers.emplace_back(to_lower_ascii(trim_ascii(line.substr(0, colon))),
                                    trim_ascii(line.substr(colon + 1)));
    }
    return line.size();
  }

  std::size_t on_send(char* out, std::size_t room) {
    const std::size_t count = std::min(room, request.body.size() - sent);
    if (count > 0) std::memcpy(out, request.body.data() + sent, count);
    sent += count;
    moved += count;
    if (count > 0 && sent == request.body.size() && request.on_sent) request.on_sent();
    return count;
  }
};

extern "C" {
std::size_t torchsnapshot_http_body(char* data, std::size_t size, std::size_t count, void* exchange) {
  try {
    return static_cast<Exchange*>(exchange)->on_body(reinterpret_cast<const std::byte*>(data), size * count);
  } catch (const std::bad_alloc&) {
    static_cast<Exchange*>(exchange)->refused = TransportFault::kTooLarge;
  } catch (...) {
    static_cast<Exchange*>(exchange)->thrown = std::current_exception();
  }
  return size * count == 0 ? 1 : 0;
}
std::size_t torchsnapshot_http_header(char* data, std::size_t size, std::size_t count, void* exchange) {
  try {
    return static_cast<Exchange*>(exchange)->on_header({data, size * count});
  } catch (const std::bad_alloc&) {
    static_cast<Exchange*>(exchange)->refused = TransportFault::kTooLarge;
    return 0;
  }
}
std::size_t torchsnapshot_http_send(char* out, std::size_t size, std::size_t count, void* exchange) {
  try {
    return static_cast<Exchange*>(exchange)->on_send(out, size * count);
  } catch (...) {
    static_cast<Exchange*>(exchange)->thrown = std::current_exception();
    return curl::kAbortRead;
  }
}
int torchsnapshot_http_seek(void* exchange, std::int64_t offset, int origin) {
  auto& sent = static_cast<Exchange*>(exchange)->sent;
  if (origin != SEEK_SET || offset < 0) return 1;
  sent = static_cast<std::size_t>(offset);
  return 0;
}
}

TransportFault fault_of(int result) noexcept {
  switch (result) {
    case curl::kOk:
      return TransportFault::kNone;
    case curl::kCouldntResolveHost:
    case curl::kCouldntResolveProxy:
      return TransportFault::kResolve;
    case curl::kCouldntConnect:
    case curl::kOperationTimedOut:
      return TransportFault::kConnect;
    case curl::kPartialFile:
      return TransportFault::kCutOff;
    case curl::kSslConnectError:
    case curl::kSslCertProblem:
      return TransportFault::kTls;
    case curl::kPeerFailedVerification:
    case curl::kSslCaCertBadFile:
      return TransportFault::kCertificate;
    case curl::kGotNothing:
    case curl::kSendError:
    case curl::kRecvError:
    case curl::kWeirdServerReply:
      return TransportFault::kReset;
    default:
      return TransportFault::kOther;
  }
}

/// Bytes that wait in the kernel to be sent: on a slow link the only sign that an upload goes on.
int unsent_bytes(const CurlLibrary& curl, void* easy) {
  int socket = -1;
  int count = 0;
  if (curl.easy_getinfo(easy, curl::kInfoActiveSocket, &socket) != curl::kOk || socket < 0) return 0;
  return ::ioctl(socket, SIOCOUTQ, &count) == 0 ? count : 0;
}

/// Header lines for libcurl; frees them at the end.
class HeaderList {
 public:
  explicit HeaderList(const CurlLibrary& curl) : curl_(curl) {}
  ~HeaderList() { curl_.slist_free_all(list_); }
  HeaderList(const HeaderList&) = delete;
  HeaderList& operator=(const HeaderList&) = delete;

  void add(const std::string& line) {
    void* const longer = curl_.slist_append(list_, line.c_str());
    if (longer == nullptr) throw Error(ErrorCode::kNoSpace, "no memory for an HTTP request");
    list_ = longer;
  }
  [[nodiscard]] void* get() const noexcept { return list_; }

 private:
  const CurlLibrary& curl_;
  void* list_ = nullptr;
};

void configure(const Slot& slot, const HttpOptions& options, Exchange& exchange, const HeaderList& headers,
               char* error_text) {
  const HttpRequest& request = exchange.request;
  const auto set = [&](int option, auto value) { slot.curl.easy_setopt(slot.easy, option, value); };
  slot.curl.easy_reset(slot.easy);  // connections are the multi handle's and stay
  set(curl::kUrl, request.url.c_str());
  set(curl::kErrorBuffer, error_text);
  set(curl::kNoSignal, 1L);
  set(curl::kHttpVersion, curl::kHttpVersion11);
  set(curl::kPathAsIs, 1L);  // "a/../b" is a key like any other
  set(curl::kTcpKeepAlive, 1L);
  set(curl::kSuppressConnectHeaders, 1L);
  set(curl::kBufferSize, kReceiveBuffer);
  set(curl::kConnectTimeoutMs, static_cast<long>(options.connect_timeout.count()));
  set(curl::kUserAgent, options.user_agent.c_str());
  set(curl::kHttpHeader, headers.get());
  if (!options.ca_bundle.empty()) set(curl::kCaInfo, options.ca_bundle.c_str());
  if (request.bypass_proxy) set(curl::kNoProxy, "*");
  if (request.method == "HEAD") {
    set(curl::kNoBody, 1L);
  } else if (request.method == "PUT" || request.method == "POST") {
    set(curl::kUpload, 1L);
    set(curl::kUploadBufferSize, kSendBuffer);
    set(curl::kInFileSizeLarge, static_cast<std::int64_t>(request.body.size()));
    set(curl::kReadFunction, &torchsnapshot_http_send);
    set(curl::kReadData, static_cast<void*>(&exchange));
    set(curl::kSeekFunction, &torchsnapshot_http_seek);
    set(curl::kSeekData, static_cast<void*>(&exchange));
  }
  if (request.method != "GET" && request.method != "HEAD" && request.method != "PUT") {
    set(curl::kCustomRequest, request.method.c_str());
  }
  set(curl::kWriteFunction, &torchsnapshot_http_body);
  set(curl::kWriteData, static_cast<void*>(&exchange));
  set(curl::kHeaderFunction, &torchsnapshot_http_header);
  set(curl::kHeaderData, static_cast<void*>(&exchange));
}

}  // namespace

std::string_view HttpResponse::header(std::string_view name) const noexcept {
  const auto found = std::find_if(headers.begin(), headers.end(), [&](const auto& h) { return h.first == name; });
  return found == headers.end() ? std::string_view() : found->second;
}

std::optional<std::uint64_t> HttpResponse::header_number(std::string_view name) const noexcept {
  const std::string_view digits = header(name);
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (digits.empty() || error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return number;
}

std::string_view to_string(TransportFault fault) noexcept {
  switch (fault) {
    case TransportFault::kNone:
      return "no fault";
    case TransportFault::kCancelled:
      return "cancelled";
    case TransportFault::kStalled:
      return "stalled transfer";
    case TransportFault::kTooSlow:
      return "transfer too slow";
    case TransportFault::kResolve:
      return "host name not found";
    case TransportFault::kConnect:
      return "no connection";
    case TransportFault::kTls:
      return "TLS handshake failed";
    case TransportFault::kCertificate:
      return "certificate not trusted";
    case TransportFault::kReset:
      return "connection reset";
    case TransportFault::kCutOff:
      return "response cut off";
    case TransportFault::kSurplus:
      return "more bytes than asked for";
    case TransportFault::kTooLarge:
      return "response too large";
    case TransportFault::kOther:
      break;
  }
  return "transfer failed";
}

struct HttpClient::Pool {
  const CurlLibrary& curl = curl_library();
  std::atomic<std::uint64_t> requests = 0;
  std::mutex mutex;
  std::vector<std::unique_ptr<Slot>> idle;  // the last one used goes out first: its connection is the freshest
  pid_t owner = ::getpid();

  std::unique_ptr<Slot> take() {
    {
      const std::lock_guard lock(mutex);
      if (owner != ::getpid()) {  // connections of the parent: closing them here could disturb it
        for (auto& slot : idle) static_cast<void>(slot.release());
        idle.clear();
        owner = ::getpid();
      }
      if (!idle.empty()) {
        auto slot = std::move(idle.back());
        idle.pop_back();
        return slot;
      }
    }
    return std::make_unique<Slot>(curl);
  }

  void give_back(std::unique_ptr<Slot> slot) {
    const std::lock_guard lock(mutex);
    idle.push_back(std::move(slot));
  }
};

HttpClient::HttpClient(HttpOptions options) : options_(std::move(options)), pool_(std::make_unique<Pool>()) {}
HttpClient::~HttpClient() {
  if (pool_->owner != ::getpid()) {
    for (auto& slot : pool_->idle) static_cast<void>(slot.release());
  }
}

std::uint64_t HttpClient::requests() const noexcept {
  return pool_->requests;
}

HttpResult HttpClient::perform(const HttpRequest& request, const std::stop_token& stop) {
  HttpResult result;
  if (stop.stop_requested()) {
    result.fault = TransportFault::kCancelled;
    return result;
  }
  const CurlLibrary& curl = pool_->curl;
  HeaderList headers(curl);
  for (const auto& [name, value] : request.headers) {
    std::string line = name;
    line.append(value.empty() ? ";" : ": ").append(value);  // "Name;" is how libcurl sends a header without a value
    headers.add(line);
  }
  headers.add("Expect:");  // no waiting for a "100 Continue"
  headers.add("Accept:");
  Exchange exchange{.request = request, .response = {}, .thrown = {}};
  std::array<char, curl::kErrorSize> error_text{};
  std::unique_ptr<Slot> slot = pool_->take();
  configure(*slot, options_, exchange, headers, error_text.data());
  ++pool_->requests;

  const milliseconds stall = request.stall_timeout.count() > 0 ? request.stall_timeout : options_.stall_timeout;
  const auto bytes = request.body.size() + request.sink.size();
  const milliseconds limit =
      options_.connect_timeout + 10 * stall + milliseconds(bytes * 1000 / options_.min_bytes_per_second);
  const auto start = Clock::now();
  auto last_progress = start;
  std::uint64_t last_moved = 0;
  int last_unsent = 0;
  int outcome = curl::kOk;

  curl.multi_add_handle(slot->multi, slot->easy);
  {
    const std::stop_callback wake(stop, [&] { curl.multi_wakeup(slot->multi); });
    for (;;) {
      int running = 0;
      curl.multi_perform(slot->multi, &running);
      if (running == 0) break;
      if (stop.stop_requested()) {
        result.fault = TransportFault::kCancelled;
        break;
      }
      const auto now = Clock::now();
      const int unsent = request.body.empty() ? 0 : unsent_bytes(curl, slot->easy);
      if (exchange.moved != last_moved || unsent != last_unsent) {
        last_moved = exchange.moved;
        last_unsent = unsent;
        last_progress = now;
      }
      const auto idle = std::chrono::duration_cast<milliseconds>(now - last_progress);
      // Name and connection have a timeout of their own.
      if (idle >= (exchange.moved == 0 ? std::max(stall, options_.connect_timeout + stall) : stall)) {
        result.fault = TransportFault::kStalled;
        break;
      }
      if (now - start >= limit) {
        result.fault = TransportFault::kTooSlow;
        break;
      }
      const auto wait = std::clamp(stall - idle, milliseconds(1), milliseconds(500));
      curl.multi_poll(slot->multi, nullptr, 0, static_cast<int>(wait.count()), nullptr);
    }
  }
  int left = 0;
  while (const curl::Message* const message = curl.multi_info_read(slot->multi, &left)) {
    if (message->message == curl::kMessageDone) outcome = message->data.result;
  }
  curl.multi_remove_handle(slot->multi, slot->easy);  // of an unfinished transfer: closes the connection
  pool_->give_back(std::move(slot));
  if (exchange.thrown) std::rethrow_exception(exchange.thrown);

  result.response = std::move(exchange.response);
  if (result.fault == TransportFault::kNone && outcome != curl::kOk) {
    result.fault = exchange.refused != TransportFault::kNone ? exchange.refused : fault_of(outcome);
    if (outcome == curl::kOutOfMemory) throw Error(ErrorCode::kNoSpace, "no memory for an HTTP request");
    result.detail = error_text[0] != '\0' ? error_text.data() : curl.easy_strerror(outcome);
  }
  return result;
}

std::string find_ca_bundle(const std::string& chosen) {
  if (!chosen.empty()) return chosen;
  for (const char* const name : {"SSL_CERT_FILE", "CURL_CA_BUNDLE"}) {
    if (const char* const value = std::getenv(name); value != nullptr && *value != '\0') return value;
  }
  // Debian's libcurl, and most others, look here by themselves; a libcurl from elsewhere may not.
  struct stat info {};
  for (const char* const path :
       {"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem"}) {
    if (::stat(path, &info) == 0) return path;
  }
  return "";
}

}  // namespace torchsnapshot
