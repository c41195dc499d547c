// Strings numbered by the caller, found by what they are.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

namespace torchsnapshot {

/// A hash table with open addressing: for many strings at once, where nodes would cost an allocation and a cache miss
/// each. It refers to the strings; numbers are below 2^32 - 1. Not thread-safe.
class StringIndex {
 public:
  /// Room for so many without growing.
  explicit StringIndex(std::size_t expected) : slots_(std::bit_ceil(expected / 2 * 3 + 16)) {}

  /// False when there is an equal string already.
  bool add(std::string_view text, std::size_t number) {
    if ((count_ + 1) * 4 > slots_.size() * 3) grow();
    const std::size_t hash = std::hash<std::string_view>{}(text);
    Slot& slot = slots_[slot_of(text, hash)];
    if (slot.number != 0) return false;
    slot = {.text = text, .hash = static_cast<std::uint32_t>(hash), .number = static_cast<std::uint32_t>(number + 1)};
    ++count_;
    return true;
  }

  [[nodiscard]] std::optional<std::size_t> find(std::string_view text) const {
    const Slot& slot = slots_[slot_of(text, std::hash<std::string_view>{}(text))];
    if (slot.number == 0) return std::nullopt;
    return slot.number - 1;
  }

 private:
  struct Slot {
    std::string_view text;
    std::uint32_t hash = 0;
    std::uint32_t number = 0;  ///< one more than what the caller gave; 0: empty
  };

  /// Where `text` is, or would be.
  [[nodiscard]] std::size_t slot_of(std::string_view text, std::size_t hash) const {
    std::size_t at = hash & (slots_.size() - 1);
    while (slots_[at].number != 0 && (slots_[at].hash != static_cast<std::uint32_t>(hash) || slots_[at].text != text)) {
      at = (at + 1) & (slots_.size() - 1);
    }
    return at;
  }

  void grow() {
    std::vector<Slot> smaller(slots_.size() * 2);
    smaller.swap(slots_);
    for (const Slot& slot : smaller) {
      if (slot.number != 0) slots_[slot_of(slot.text, std::hash<std::string_view>{}(slot.text))] = slot;
    }
  }

  std::vector<Slot> slots_;
  std::size_t count_ = 0;
};

}  // namespace torchsnapshot
