#include "cloud/store_error.h"

#include <algorithm>
#include <array>

#include "net/encoding.h"
#include "net/json.h"
#include "net/xml.h"

namespace torchsnapshot {
namespace {

template <std::size_t N>
bool is_one_of(std::string_view text, const std::array<std::string_view, N>& known) {
  return std::find(known.begin(), known.end(), text) != known.end();
}

constexpr std::array<std::string_view, 12> kTransientCodes = {
    "SlowDown",         "InternalError",  "ServiceUnavailable",         "RequestTimeout",
    "Throttling",       "Busy",           "ThrottlingException",        "RequestLimitExceeded",
    "OperationAborted", "BandwidthLimit", "ConditionalRequestConflict", "XMinioServerNotInitialized"};
constexpr std::array<std::string_view, 4> kExpiredCodes = {"ExpiredToken", "TokenRefreshRequired",
                                                           "ExpiredTokenException", "RequestExpired"};
constexpr std::array<std::string_view, 4> kElsewhereCodes = {
    "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"};
constexpr std::array<std::string_view, 3> kDamagedCodes = {"BadDigest", "XAmzContentSHA256Mismatch",
                                                           "XAmzContentChecksumMismatch"};
constexpr std::array<int, 7> kTransientStatus = {408, 425, 429, 500, 502, 503, 504};

/// One printable line of bounded length; a store's text is shown, but not trusted.
std::string shown(std::string_view text) {
  std::string line;
  for (const char c : text.substr(0, 300)) {
    line += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  }
  if (text.size() > 300) line += "...";
  return std::string(trim_ascii(line));
}

void read_xml(std::string_view body, StoreFault& fault) {
  const XmlElement root = parse_xml(body);
  if (root.name != "Error") return;
  fault.code = shown(root.child_text("Code"));
  fault.message = shown(root.child_text("Message"));
  if (fault.message.empty()) fault.message = shown(root.child_text("Details"));
  fault.region = shown(root.child_text("Region"));
  if (fault.request_id.empty()) fault.request_id = shown(root.child_text("RequestId"));
}

void read_json(std::string_view body, StoreFault& fault) {
  const JsonValue root = parse_json(body);
  const JsonValue* const error = root.field("error");
  if (error == nullptr) return;
  if (error->kind == JsonValue::Kind::kString) {  // token servers
    fault.code = shown(error->text);
    fault.message = shown(root.field_text("error_description"));
    return;
  }
  fault.message = shown(error->field_text("message"));
  const JsonValue* const reasons = error->field("errors");
  if (reasons != nullptr && !reasons->items.empty()) fault.code = shown(reasons->items[0].field_text("reason"));
  if (fault.code.empty()) fault.code = shown(error->field_text("status"));
}

}  // namespace

StoreFault parse_store_fault(const HttpResponse& response) {
  StoreFault fault;
  for (const std::string_view name : {"x-amz-request-id", "x-guploader-uploadid", "x-request-id"}) {
    if (fault.request_id.empty()) fault.request_id = shown(response.header(name));
  }
  const std::string_view body = trim_ascii(response.text);
  try {
    if (body.starts_with('<')) read_xml(body, fault);
    if (body.starts_with('{')) read_json(body, fault);
  } catch (const Error&) {  // cut off, or an HTML page of something in between
    fault.message = shown(body.substr(0, 100));
  }
  if (const std::string_view region = response.header("x-amz-bucket-region"); !region.empty()) {
    fault.region = shown(region);
  }
  return fault;
}

bool is_hidden_error(const HttpResponse& response) {
  if (response.status != 200 || response.text.size() > (64U << 10U)) return false;
  std::string_view body = trim_ascii(response.text);
  if (body.starts_with("<?xml")) body = trim_ascii(body.substr(std::min(body.find("?>"), body.size() - 2) + 2));
  return body.starts_with("<Error>") || body.starts_with("<Error ");
}

FaultClass classify(const HttpResult& result, const StoreFault& fault) {
  switch (result.fault) {
    case TransportFault::kNone:
      break;
    case TransportFault::kCancelled:
      return FaultClass::kCancelled;
    case TransportFault::kResolve:
    case TransportFault::kConnect:
      return FaultClass::kUnreachable;
    case TransportFault::kCertificate:
    case TransportFault::kSurplus:
    case TransportFault::kTooLarge:
      return FaultClass::kFinal;
    default:
      return FaultClass::kTransient;
  }
  const int status = result.response.status;
  if (fault.code == "RequestTimeTooSkewed") return FaultClass::kClockSkew;
  if (is_one_of(fault.code, kExpiredCodes) || status == 401) return FaultClass::kExpired;
  if (is_one_of(fault.code, kElsewhereCodes) || status == 301 || status == 307 || status == 302) {
    return FaultClass::kElsewhere;
  }
  if (is_one_of(fault.code, kDamagedCodes)) return FaultClass::kDamaged;
  const bool transient_status =
      std::find(kTransientStatus.begin(), kTransientStatus.end(), status) != kTransientStatus.end();
  if (transient_status || is_one_of(fault.code, kTransientCodes)) return FaultClass::kTransient;
  return FaultClass::kFinal;
}

std::string reason_of(const HttpResult& result, const StoreFault& fault) {
  if (result.fault != TransportFault::kNone) return std::string(to_string(result.fault));
  return std::to_string(result.response.status) + (fault.code.empty() ? "" : " " + fault.code);
}

ErrorCode error_code_of(const HttpResult& result, const StoreFault& fault) {
  if (result.fault == TransportFault::kCancelled) return ErrorCode::kCancelled;
  if (result.fault == TransportFault::kSurplus) return ErrorCode::kCorrupt;
  if (result.fault != TransportFault::kNone) return ErrorCode::kIo;
  if (fault.code == "QuotaExceeded" || fault.code == "EntityTooLarge" || fault.code == "XMinioStorageFull" ||
      result.response.status == 507) {
    return ErrorCode::kNoSpace;
  }
  if (fault.code == "InvalidBucketName" || fault.code == "InvalidStorageClass") return ErrorCode::kInvalidArgument;
  switch (result.response.status) {
    case 401:
    case 403:
      return ErrorCode::kPermissionDenied;
    case 404:
      return ErrorCode::kNotFound;
    case 412:
      return ErrorCode::kAlreadyExists;
    case 416:
      return ErrorCode::kCorrupt;
    default:
      return is_one_of(fault.code, kExpiredCodes) ? ErrorCode::kPermissionDenied : ErrorCode::kIo;
  }
}

std::string remedy_of(const HttpResult& result, const StoreFault& fault, std::string_view operation,
                      std::string_view source) {
  switch (result.fault) {
    case TransportFault::kNone:
      break;
    case TransportFault::kResolve:
      return "check endpoint_url, region and the name service of this machine";
    case TransportFault::kConnect:
      return "check endpoint_url, and that the server can be reached from this machine (proxy, firewall)";
    case TransportFault::kCertificate:
      return "set ca_bundle or AWS_CA_BUNDLE to the file with the certificate authority of this server";
    case TransportFault::kTls:
      return "check that endpoint_url has the right scheme (http or https) and port";
    case TransportFault::kStalled:
    case TransportFault::kTooSlow:
      return "check the network; stall_timeout and retry_timeout are the limits";
    case TransportFault::kReset:
    case TransportFault::kCutOff:
    case TransportFault::kOther:
      return "check the network between this machine and the store; retry_timeout is the limit";
    default:
      return "";
  }
  const std::string from = " (they are from " + std::string(source) + ")";
  if (fault.code == "NoSuchBucket" || fault.message.find("bucket does not exist") != std::string::npos) {
    return "create the bucket, or correct its name in the URL";
  }
  if (fault.code == "InvalidAccessKeyId" || fault.code == "SignatureDoesNotMatch") {
    return "check the access key and its secret" + from;
  }
  if (is_one_of(fault.code, kDamagedCodes)) {
    return "the content was changed on its way to the store: check the memory and network of this machine";
  }
  if (result.response.status == 501 || fault.code == "NotImplemented") {
    return "this store lacks something that is used: try checksum=none";
  }
  if (fault.code == "RequestTimeTooSkewed") return "set the clock of this machine";
  if (is_one_of(fault.code, kExpiredCodes) || result.response.status == 401) return "renew the credentials" + from;
  if (is_one_of(fault.code, kElsewhereCodes)) return "set region (or AWS_REGION) to that of the bucket";
  if (result.response.status == 403) {
    std::string_view permission = operation;
    if (operation == "HeadObject") permission = "GetObject";
    if (operation == "ListObjects") permission = "ListBucket";
    if (operation.find("Multipart") != std::string_view::npos || operation == "UploadPart") permission = "PutObject";
    return "the credentials" + from + " need the permission for " + std::string(permission) +
           " on this bucket and prefix" +
           (permission == "GetObject" ? "; without that for ListBucket a missing object looks the same" : "");
  }
  if (classify(result, fault) == FaultClass::kTransient) {
    return "the store is overloaded or failing: try again later, with a longer retry_timeout or less concurrency";
  }
  return "";
}

}  // namespace torchsnapshot
