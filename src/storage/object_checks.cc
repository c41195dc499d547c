#include "storage/object_checks.h"

#include <string>

#include "torchsnapshot/error.h"

namespace torchsnapshot {

void check_stop(const std::stop_token& stop, std::string_view operation, std::string_view name) {
  if (!stop.stop_requested()) return;
  throw Error(ErrorCode::kCancelled, std::string(operation) + " " + std::string(name) + ": cancelled");
}

void check_read(std::uint64_t offset, std::uint64_t count, std::uint64_t size, std::string_view name) {
  if (offset <= size && count <= size - offset) return;
  throw Error(ErrorCode::kCorrupt, "read " + std::string(name) + ": " + std::to_string(count) + " bytes at offset " +
                                       std::to_string(offset) + " are wanted, but the object has only " +
                                       std::to_string(size) + " bytes");
}

void check_limit(std::uint64_t size, std::uint64_t limit, std::string_view name) {
  if (size <= limit) return;
  throw Error(ErrorCode::kCorrupt, "read " + std::string(name) + ": it has " + std::to_string(size) +
                                       " bytes, more than the " + std::to_string(limit) + " that are allowed here");
}

void WriteProgress::check_block(std::uint64_t offset, std::uint64_t count, std::string_view name) const {
  if (offset <= size_ && count <= size_ - offset) return;
  throw Error(ErrorCode::kInvalidArgument, "write " + std::string(name) + ": " + std::to_string(count) +
                                               " bytes at offset " + std::to_string(offset) +
                                               " don't fit in an object of " + std::to_string(size_) + " bytes");
}

void WriteProgress::check_complete(std::string_view name) {
  if (finished_.exchange(true)) {
    throw Error(ErrorCode::kInvalidArgument, "finish " + std::string(name) + ": it was called before");
  }
  if (written_ == size_) return;
  throw Error(ErrorCode::kInvalidArgument, "finish " + std::string(name) + ": only " + std::to_string(written_) +
                                               " of " + std::to_string(size_) + " bytes are written");
}

}  // namespace torchsnapshot
