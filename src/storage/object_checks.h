// What every backend checks in the same way and says in the same words. `name` is what messages call the
// object: the storage's URL and the location.
#pragma once

#include <atomic>
#include <cstdint>
#include <stop_token>
#include <string_view>

namespace torchsnapshot {

/// Throws Error(kCancelled) when a stop was requested.
void check_stop(const std::stop_token& stop, std::string_view operation, std::string_view name);

/// Throws Error(kCorrupt) unless [offset, offset + count) lies within `size` bytes.
void check_read(std::uint64_t offset, std::uint64_t count, std::uint64_t size, std::string_view name);

/// Throws Error(kCorrupt) when an object that is read as a whole has more than `limit` bytes.
void check_limit(std::uint64_t size, std::uint64_t limit, std::string_view name);

/// Counts the bytes of an object that are written. An object that was not written as a whole, or of which
/// a write failed, must never be finished: on a file system the gaps would read as zeros. Thread-safe.
class WriteProgress {
 public:
  explicit WriteProgress(std::uint64_t size) noexcept : size_(size) {}

  /// Throws Error(kInvalidArgument) unless [offset, offset + count) lies in the object.
  void check_block(std::uint64_t offset, std::uint64_t count, std::string_view name) const;
  /// A block is written.
  void add(std::uint64_t count) noexcept { written_ += count; }
  /// Throws Error(kInvalidArgument) unless this is the first call and every byte was added.
  void check_complete(std::string_view name);

 private:
  const std::uint64_t size_;
  std::atomic<std::uint64_t> written_ = 0;
  std::atomic<bool> finished_ = false;
};

}  // namespace torchsnapshot
