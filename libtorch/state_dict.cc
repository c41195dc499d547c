#include <ATen/core/ivalue.h>

#include <string>
#include <utility>

#include "libtorch/archive.h"
#include "libtorch/shard.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/torch.h"

namespace torchsnapshot::libtorch {
namespace {

[[noreturn]] void fail(std::string_view key, const std::string& wanted, const c10::IValue& value) {
  throw Error(ErrorCode::kTypeMismatch, "'" + std::string(key) + "' is " +
                                            (value.isNone() ? "None" : "a " + value.tagKind()) + ", not " + wanted);
}

}  // namespace

StateDict::StateDict() = default;
StateDict::StateDict(const StateDict& other) = default;
StateDict::StateDict(StateDict&& other) noexcept = default;
StateDict& StateDict::operator=(const StateDict& other) = default;
StateDict& StateDict::operator=(StateDict&& other) noexcept = default;
StateDict::~StateDict() = default;

StateDict::StateDict(std::initializer_list<Item> items) {
  for (const auto& [key, value] : items) set(key, value);
}

StateDict::StateDict(const c10::IValue& dict) {
  if (!dict.isGenericDict()) throw Error(ErrorCode::kTypeMismatch, "a " + dict.tagKind() + " is no dict");
  for (const auto& item : dict.toGenericDict()) {
    if (!item.key().isString()) throw Error(ErrorCode::kTypeMismatch, "a StateDict has only text as keys");
    set(item.key().toStringRef(), item.value());
  }
}

c10::IValue& StateDict::operator[](std::string_view key) {
  const auto [found, is_new] = index_.try_emplace(std::string(key), items_.size());
  if (is_new) items_.emplace_back(std::string(key), c10::IValue());
  return items_[found->second].second;
}

const c10::IValue& StateDict::at(std::string_view key) const {
  const auto found = index_.find(key);
  if (found == index_.end()) {
    throw Error(ErrorCode::kEntryNotFound, "the state has no key '" + std::string(key) + "'");
  }
  return items_[found->second].second;
}

bool StateDict::contains(std::string_view key) const noexcept {
  return index_.contains(key);
}

void StateDict::set(std::string_view key, c10::IValue value) {
  (*this)[key] = std::move(value);
}

void StateDict::erase(std::string_view key) {
  const auto found = index_.find(key);
  if (found == index_.end()) return;
  const std::size_t place = found->second;
  index_.erase(found);
  items_.erase(items_.begin() + static_cast<std::ptrdiff_t>(place));
  for (auto& [name, index] : index_) {
    if (index > place) --index;
  }
}

StateDict::operator c10::IValue() const {
  c10::impl::GenericDict dict(c10::StringType::get(), c10::AnyType::get());
  for (const auto& [key, value] : items_) dict.insert(key, value);
  return dict;
}

namespace detail {

bool as_bool(const c10::IValue& value, std::string_view key) {
  if (!value.isBool()) fail(key, "a bool", value);
  return value.toBool();
}

std::int64_t as_int(const c10::IValue& value, std::string_view key) {
  if (!value.isInt()) fail(key, "an integer", value);
  return value.toInt();
}

double as_double(const c10::IValue& value, std::string_view key) {
  if (value.isInt()) return static_cast<double>(value.toInt());
  if (!value.isDouble()) fail(key, "a number", value);
  return value.toDouble();
}

std::string as_string(const c10::IValue& value, std::string_view key) {
  if (!value.isString()) fail(key, "text", value);
  return value.toStringRef();
}

at::Tensor as_tensor(const c10::IValue& value, std::string_view key) {
  if (!value.isTensor()) fail(key, "a tensor", value);
  return value.toTensor();
}

Bytes as_bytes(const c10::IValue& value, std::string_view key) {
  if (!is_bytes(value)) fail(key, "bytes", value);
  return Bytes{bytes_of(value)};
}

Shard as_shard(const c10::IValue& value, std::string_view key) {
  if (!is_shard(value)) fail(key, "a shard", value);
  return shard_of(value);
}

StateDict as_state_dict(const c10::IValue& value, std::string_view key) {
  if (!value.isGenericDict()) fail(key, "a dict", value);
  return StateDict(value);
}

std::vector<c10::IValue> as_list(const c10::IValue& value, std::string_view key) {
  if (value.isTuple()) return value.toTupleRef().elements().vec();
  if (!value.isList()) fail(key, "a list", value);
  std::vector<c10::IValue> items;
  for (const auto& item : value.toList()) items.emplace_back(item);
  return items;
}

void fail_range(std::string_view key) {
  throw Error(ErrorCode::kTypeMismatch, "'" + std::string(key) + "' does not fit into the integer type asked for");
}

}  // namespace detail
}  // namespace torchsnapshot::libtorch
