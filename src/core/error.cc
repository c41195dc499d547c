#include "torchsnapshot/error.h"

#include <cerrno>
#include <system_error>

namespace torchsnapshot {
namespace {

ErrorCode code_of_errno(int sys_errno) noexcept {
  switch (sys_errno) {
    case ENOENT:
      return ErrorCode::kNotFound;
    case EACCES:
    case EPERM:
    case EROFS:
      return ErrorCode::kPermissionDenied;
    case EEXIST:
      return ErrorCode::kAlreadyExists;
    case ENOTDIR:
    case EISDIR:
      return ErrorCode::kNotADirectory;
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
      return ErrorCode::kNoSpace;
    default:
      return ErrorCode::kIo;
  }
}

}  // namespace

std::string_view to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "INVALID_ARGUMENT";
    case ErrorCode::kTypeMismatch:
      return "TYPE_MISMATCH";
    case ErrorCode::kMismatch:
      return "MISMATCH";
    case ErrorCode::kNotFound:
      return "NOT_FOUND";
    case ErrorCode::kEntryNotFound:
      return "ENTRY_NOT_FOUND";
    case ErrorCode::kPermissionDenied:
      return "PERMISSION_DENIED";
    case ErrorCode::kAlreadyExists:
      return "ALREADY_EXISTS";
    case ErrorCode::kNotADirectory:
      return "NOT_A_DIRECTORY";
    case ErrorCode::kNoSpace:
      return "NO_SPACE";
    case ErrorCode::kIo:
      return "IO";
    case ErrorCode::kNotASnapshot:
      return "NOT_A_SNAPSHOT";
    case ErrorCode::kCorrupt:
      return "CORRUPT";
    case ErrorCode::kUnsupported:
      return "UNSUPPORTED";
    case ErrorCode::kCancelled:
      return "CANCELLED";
    case ErrorCode::kInternal:
      return "INTERNAL";
  }
  return "UNKNOWN";
}

Error Error::with_context(std::string_view context) const {
  std::string message(context);
  message += ": ";
  message += what();
  return {code_, message, sys_errno_};
}

Error errno_error(int sys_errno, std::string_view what) {
  std::string message(what);
  message += ": ";
  message += std::generic_category().message(sys_errno);
  return {code_of_errno(sys_errno), message, sys_errno};
}

}  // namespace torchsnapshot
