#include "torchsnapshot/value.h"

#include <algorithm>
#include <charconv>

namespace torchsnapshot {

std::optional<std::int64_t> Integer::to_int64() const noexcept {
  std::int64_t value = 0;
  const char* end = decimal.data() + decimal.size();
  const auto [stop, status] = std::from_chars(decimal.data(), end, value);
  if (status != std::errc() || stop != end) return std::nullopt;
  return value;
}

const Value* Dict::find(const Key& key) const noexcept {
  const auto found = std::find_if(items.begin(), items.end(), [&](const auto& item) { return item.first == key; });
  return found == items.end() ? nullptr : &found->second;
}

Value* Dict::find(const Key& key) noexcept {
  return const_cast<Value*>(std::as_const(*this).find(key));
}

}  // namespace torchsnapshot
