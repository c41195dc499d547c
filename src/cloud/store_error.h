// What a store's answer means: is it worth another try, and what does a message say. Pure.
#pragma once

#include <string>
#include <string_view>

#include "net/http.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {

/// What a store says about a failure, in XML or JSON; empty where it says nothing.
struct StoreFault {
  std::string code;     ///< "SlowDown"; of the JSON API the reason or status
  std::string message;  ///< printable, at most a few hundred bytes
  std::string request_id;
  std::string region;  ///< where the bucket is, when it is elsewhere
};

/// Looks into headers and body of a response that is no success.
StoreFault parse_store_fault(const HttpResponse& response);

/// True for a 200 whose body is an error (complete-multipart and copy do that).
bool is_hidden_error(const HttpResponse& response);

enum class FaultClass : std::uint8_t {
  kTransient,    ///< try again after a pause
  kClockSkew,    ///< correct the clock
  kExpired,      ///< renew the credentials
  kElsewhere,    ///< another region or host
  kUnreachable,  ///< no such host, or nobody answers: transient only where it worked before
  kDamaged,      ///< the body did not arrive as it was sent
  kCancelled,
  kFinal
};

/// The class of a result that is no success.
FaultClass classify(const HttpResult& result, const StoreFault& fault);

/// "503 SlowDown", "connection reset": for the log of attempts.
std::string reason_of(const HttpResult& result, const StoreFault& fault);

/// The code of the Error that a failure becomes.
ErrorCode error_code_of(const HttpResult& result, const StoreFault& fault);

/// What the user can do about it; "" when nothing is known. `operation`: "PutObject"; `source`: of the credentials.
std::string remedy_of(const HttpResult& result, const StoreFault& fault, std::string_view operation,
                      std::string_view source);

}  // namespace torchsnapshot
