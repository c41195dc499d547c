// 128 bits that tell whether two ranks have the same input.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

namespace torchsnapshot {

/// Two inputs that differ give different digests, but for chance (not for malice). The same on every machine.
struct Digest {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  friend auto operator<=>(const Digest&, const Digest&) = default;
};

/// Takes in values one after the other. Pure.
class Digester {
 public:
  void add(std::uint64_t value) noexcept {
    digest_.high = fold(digest_.high ^ value, 0x9E3779B97F4A7C15U);
    digest_.low = fold(digest_.low + value, 0xD6E8FEB86659FD93U) ^ digest_.high;
  }
  void add(std::string_view text) noexcept {
    add(text.size());
    while (!text.empty()) {
      std::uint64_t word = 0;
      const std::size_t size = text.size() < 8 ? text.size() : 8;
      std::memcpy(&word, text.data(), size);
      add(word);
      text.remove_prefix(size);
    }
  }
  template <typename Integers>
  void add_all(const Integers& values) noexcept {
    add(static_cast<std::uint64_t>(values.size()));
    for (const auto value : values) add(static_cast<std::uint64_t>(value));
  }
  [[nodiscard]] Digest digest() const noexcept { return digest_; }

 private:
  static std::uint64_t fold(std::uint64_t a, std::uint64_t b) noexcept {
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(a ^ (b << 1U)) * (b | 1U);
    const std::uint64_t mixed = static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64U);
    return (mixed ^ (mixed >> 29U)) * 0xBF58476D1CE4E5B9U + 1;
  }

  Digest digest_{0x243F6A8885A308D3U, 0x13198A2E03707344U};
};

}  // namespace torchsnapshot
