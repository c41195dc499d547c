// Byte ranges and shared byte buffers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace torchsnapshot {

/// Half-open range [begin, end) of bytes within an object.
struct ByteRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  [[nodiscard]] std::uint64_t size() const noexcept { return end - begin; }
  friend bool operator==(const ByteRange&, const ByteRange&) = default;
};

/// Immutable bytes with shared ownership. Copies are cheap and refer to the same memory.
class SharedBytes {
 public:
  SharedBytes() = default;
  /// Refers to memory that lives as long as `owner` (null: the caller keeps it alive).
  SharedBytes(std::span<const std::byte> bytes, std::shared_ptr<const void> owner) noexcept
      : bytes_(bytes), owner_(std::move(owner)) {}
  /// Takes a copy of `text`.
  static SharedBytes copy_of(std::string_view text) {
    auto owned = std::make_shared<const std::string>(text);
    return {std::as_bytes(std::span(*owned)), owned};
  }

  [[nodiscard]] std::span<const std::byte> span() const noexcept { return bytes_; }
  [[nodiscard]] std::string_view view() const noexcept {
    return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()};
  }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }

 private:
  std::span<const std::byte> bytes_;
  std::shared_ptr<const void> owner_;
};

}  // namespace torchsnapshot
