// Bytes of numbers and strings, one behind the other. Numbers are LEB128: seven bits a byte, the lowest first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "torchsnapshot/error.h"

namespace torchsnapshot {

class CompactWriter {
 public:
  void number(std::uint64_t value) {
    while (value >= 0x80) {
      bytes_ += static_cast<char>(value | 0x80U);
      value >>= 7U;
    }
    bytes_ += static_cast<char>(value);
  }
  /// Small ones of either sign are short.
  void integer(std::int64_t value) {
    const auto bits = static_cast<std::uint64_t>(value);
    number(value < 0 ? ~(bits << 1U) : bits << 1U);
  }
  void text(std::string_view text) {
    number(text.size());
    bytes_ += text;
  }
  [[nodiscard]] const std::string& bytes() const noexcept { return bytes_; }
  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

/// Throws Error(kCorrupt) where the bytes end too early, or a number is too large.
class CompactReader {
 public:
  explicit CompactReader(std::string_view bytes) : bytes_(bytes) {}

  std::uint64_t number() {
    std::uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
      if (at_ == bytes_.size()) fail("they end too early");
      const auto byte = static_cast<unsigned char>(bytes_[at_++]);
      if (shift == 63 && byte > 1) fail("a number is too large");
      value |= std::uint64_t{byte & 0x7FU} << shift;
      if (byte < 0x80) return value;
    }
  }
  std::int64_t integer() {
    const std::uint64_t bits = number();
    return static_cast<std::int64_t>((bits >> 1U) ^ (~(bits & 1U) + 1U));
  }
  /// A number of things, each of which takes a byte at least.
  std::size_t count() {
    const std::uint64_t value = number();
    if (value > bytes_.size() - at_) fail("they end too early");
    return static_cast<std::size_t>(value);
  }
  /// Valid as long as the bytes.
  std::string_view text() {
    const std::size_t size = count();
    const std::string_view found = bytes_.substr(at_, size);
    at_ += size;
    return found;
  }
  [[nodiscard]] bool at_end() const noexcept { return at_ == bytes_.size(); }
  [[noreturn]] static void fail(const char* why) {
    throw Error(ErrorCode::kCorrupt, std::string("packed entries are malformed: ") + why);
  }

 private:
  std::string_view bytes_;
  std::size_t at_ = 0;
};

}  // namespace torchsnapshot
