// Messages between ranks: numbers (little-endian) and texts (their length first), one behind the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "core/little_endian.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {

class MessageWriter {
 public:
  template <class Number = std::uint64_t>
  void number(Number value) {
    put_little_endian(bytes_, value);
  }
  void byte(std::size_t value) { bytes_ += static_cast<char>(value); }
  void text(std::string_view value) {
    number<std::uint64_t>(value.size());
    bytes_ += value;
  }
  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

/// Throws `malformed` where the bytes end too early.
class MessageReader {
 public:
  MessageReader(std::string_view bytes, Error malformed) : bytes_(bytes), malformed_(std::move(malformed)) {}

  template <class Number = std::uint64_t>
  Number number() {
    return get_little_endian<Number>(take(sizeof(Number)));
  }
  std::size_t byte() { return static_cast<unsigned char>(take(1)[0]); }
  std::string text() { return std::string(take(number())); }
  [[nodiscard]] bool at_end() const noexcept { return bytes_.empty(); }
  void expect_end() const {
    if (!at_end()) throw malformed_;
  }

 private:
  std::string_view take(std::uint64_t size) {
    if (size > bytes_.size()) throw malformed_;
    const std::string_view taken = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return taken;
  }

  std::string_view bytes_;
  Error malformed_;
};

}  // namespace torchsnapshot
