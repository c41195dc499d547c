// The one exception type of the engine.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace torchsnapshot {

/// What kind of thing went wrong; a face maps it to its own error classes.
enum class ErrorCode {
  kInvalidArgument,   ///< the caller passed something that can't be right
  kTypeMismatch,      ///< an argument of the wrong type
  kMismatch,          ///< a tensor of the target whose dtype or shape differs from what was saved
  kNotFound,          ///< a file or object that does not exist
  kEntryNotFound,     ///< an entry or key that the snapshot does not have
  kPermissionDenied,  ///< the operating system or the store refused access
  kAlreadyExists,     ///< a name that must be new is taken
  kNotADirectory,     ///< a path that must be a folder is something else
  kNoSpace,           ///< disk, quota or memory exhausted
  kIo,                ///< any other failure of a device, file system or store
  kNotASnapshot,      ///< no readable metadata: not a snapshot, or an unfinished one
  kCorrupt,           ///< bytes on storage that contradict the manifest or are malformed
  kUnsupported,       ///< valid, but not possible in this build or with this value
  kCancelled,         ///< stopped by the caller
  kInternal,          ///< a bug in the engine
};

/// Stable upper-case name of a code, as printed by tools ("NOT_FOUND").
std::string_view to_string(ErrorCode code) noexcept;

/// Thrown by every function of the engine that fails. The message is a chain of contexts, outermost
/// first: "writing 0/model/weight: pwrite data/6f…/0-3: No space left on device".
/// Copyable; a copy may be rethrown on another thread.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message, int sys_errno = 0)
      : std::runtime_error(message), code_(code), sys_errno_(sys_errno) {}

  [[nodiscard]] ErrorCode code() const noexcept { return code_; }
  /// errno of the failed system call, or 0.
  [[nodiscard]] int sys_errno() const noexcept { return sys_errno_; }
  /// The same error with "context: " put in front of the message.
  [[nodiscard]] Error with_context(std::string_view context) const;

 private:
  ErrorCode code_;
  int sys_errno_;
};

/// The error for a failed system call: maps errno to a code and appends its text.
/// `what` is the operation and its object ("open /a/b").
Error errno_error(int sys_errno, std::string_view what);

}  // namespace torchsnapshot
