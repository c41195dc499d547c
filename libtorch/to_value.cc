#include <algorithm>
#include <cctype>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>

#include "core/path_codec.h"
#include "libtorch/archive.h"
#include "libtorch/shard.h"
#include "libtorch/tensor_leaf.h"
#include "libtorch/translate.h"
#include "state/flatten.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot::libtorch {
namespace {

/// True for text that Python's int() may read as a number.
bool may_be_number(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 0x80 || std::isdigit(byte) != 0 || std::isspace(byte) != 0 || c == '_' || c == '+' || c == '-';
  });
}

/// True when inflating gives back exactly the keys: text and integers, and none that reads back as another.
bool is_flattenable(const c10::impl::GenericDict& dict) {
  bool has_int = false;
  bool has_number_text = false;
  for (const auto& item : dict) {
    if (item.key().isInt()) {
      has_int = true;
    } else if (item.key().isString()) {
      has_number_text = has_number_text || may_be_number(item.key().toStringRef());
    } else {
      return false;
    }
  }
  return !has_int || !has_number_text;
}

}  // namespace

Value ToValue::to_save(const std::string& key, const StateDict& state) {
  return convert_root(key, Purpose::kSave, state);
}

Value ToValue::to_fill(const std::string& key, const StateDict& state) {
  return convert_root(key, Purpose::kFill, state);
}

Value ToValue::convert_root(const std::string& key, Purpose purpose, const StateDict& state) {
  purpose_ = purpose;
  components_ = {encode_component(key)};
  Dict dict;
  dict.ordered = state.ordered();
  dict.items.reserve(state.size());
  for (const auto& [name, value] : state) {
    components_.push_back(encode_component(name));
    dict.items.emplace_back(name, convert(value, 1));
    components_.pop_back();
  }
  return dict;
}

std::string ToValue::path() const {
  return join_components(components_);
}

Value ToValue::convert(const c10::IValue& value, std::size_t depth) {
  if (depth > static_cast<std::size_t>(kMaxDepth)) {
    throw Error(ErrorCode::kInvalidArgument, "state below '" + path().substr(0, 200) + "' is nested more than " +
                                                 std::to_string(kMaxDepth) + " levels deep, or contains itself");
  }
  if (value.isTensor() && value.toTensor().defined()) return convert_tensor(value.toTensor());
  if (value.isInt()) return Integer(value.toInt());
  if (value.isDouble()) return value.toDouble();
  if (value.isBool()) return value.toBool();
  if (value.isString()) return value.toStringRef();
  if (is_bytes(value)) return Bytes{bytes_of(value)};
  if (is_shard(value)) return to_leaf(shard_of(value), path(), purpose_ == Purpose::kFill);
  if (value.isGenericDict()) return convert_dict(value, depth);
  if (value.isList()) {
    List list;
    std::size_t index = 0;
    for (const auto& item : value.toList()) {
      components_.push_back(std::to_string(index++));
      list.items.push_back(convert(item, depth + 1));
      components_.pop_back();
    }
    return list;
  }
  return convert_opaque(value);
}

Value ToValue::convert_dict(const c10::IValue& value, std::size_t depth) {
  const c10::impl::GenericDict items = value.toGenericDict();
  if (!is_flattenable(items)) return convert_opaque(value);
  Dict dict;
  dict.items.reserve(items.size());
  for (const auto& item : items) {
    Key key = item.key().isInt() ? Key(Integer(item.key().toInt())) : Key(item.key().toStringRef());
    components_.push_back(encode_component(key.text));
    dict.items.emplace_back(std::move(key), convert(item.value(), depth + 1));
    components_.pop_back();
  }
  return dict;
}

Value ToValue::convert_tensor(const at::Tensor& tensor) {
  const bool saving = purpose_ == Purpose::kSave;
  if (tensor.is_meta()) {
    throw Error(ErrorCode::kUnsupported, "'" + path() + "' is a meta tensor, which has no data: give it memory first");
  }
  if (is_plain(tensor)) return view_of(tensor, *to_dtype(tensor.scalar_type()), !saving);
  const auto dtype = to_dtype(tensor.scalar_type());
  if (!dtype || tensor.layout() != at::kStrided || tensor.is_nested()) return convert_opaque(tensor);
  if (saving && !tensor.is_quantized()) {  // a view that conjugates or negates
    return view_of(tensor.detach().resolve_conj().resolve_neg(), *dtype, false);
  }
  EncodedTensor encoded;
  encoded.dtype = *dtype;
  encoded.shape = tensor.sizes().vec();
  encoded.owner = std::make_shared<at::Tensor>(tensor);
  if (saving) {
    encoded.parts.push_back({.box = Box::whole(encoded.shape),
                             .serializer = std::string(kTorchSave),
                             .bytes = SharedBytes::copy_of(save_tensor_archive(tensor))});
  } else if (!tensor.is_quantized()) {
    deferred_.emplace(path(), tensor);
  }
  return encoded;
}

Value ToValue::convert_opaque(const c10::IValue& value) {
  Opaque opaque;
  if (purpose_ == Purpose::kFill) {
    opaque.owner = std::make_shared<c10::IValue>(value);  // what stays when the saved object is damaged (keep_going)
    return opaque;
  }
  opaque.serializer = kTorchSave;
  opaque.type_name = python_type_name(value);
  try {
    opaque.bytes = SharedBytes::copy_of(
        value.isTensor() && value.toTensor().defined() ? save_tensor_archive(value.toTensor()) : save_archive(value));
  } catch (const Error& error) {
    throw error.with_context("'" + path() + "'");
  }
  return opaque;
}

}  // namespace torchsnapshot::libtorch
