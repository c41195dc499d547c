#include <ATen/core/grad_mode.h>

#include <memory>
#include <string>
#include <utility>

#include "core/path_codec.h"
#include "libtorch/archive.h"
#include "libtorch/shard.h"
#include "libtorch/tensor_leaf.h"
#include "libtorch/translate.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot::libtorch {
namespace {

bool same_quantizer(const at::Tensor& a, const at::Tensor& b) {
  if (!a.is_quantized() || !b.is_quantized() || a.qscheme() != b.qscheme()) return false;
  if (a.qscheme() == at::kPerTensorAffine || a.qscheme() == at::kPerTensorSymmetric) {
    return a.q_scale() == b.q_scale() && a.q_zero_point() == b.q_zero_point();
  }
  return a.q_per_channel_axis() == b.q_per_channel_axis() && a.q_per_channel_scales().equal(b.q_per_channel_scales()) &&
         a.q_per_channel_zero_points().equal(b.q_per_channel_zero_points());
}

/// A list that knows the type of its elements, so that toIntVector() and its like work.
c10::IValue typed_list(std::vector<c10::IValue> items) {
  const auto all = [&items](auto is) {
    for (const c10::IValue& item : items) {
      if (!is(item)) return false;
    }
    return !items.empty();
  };
  c10::TypePtr type = c10::AnyType::get();
  if (all([](const c10::IValue& item) { return item.isInt(); })) type = c10::IntType::get();
  if (all([](const c10::IValue& item) { return item.isDouble(); })) type = c10::FloatType::get();
  if (all([](const c10::IValue& item) { return item.isBool(); })) type = c10::BoolType::get();
  if (all([](const c10::IValue& item) { return item.isString(); })) type = c10::StringType::get();
  if (all([](const c10::IValue& item) { return item.isTensor(); })) type = c10::TensorType::get();
  c10::impl::GenericList list(type);
  list.reserve(items.size());
  for (c10::IValue& item : items) list.push_back(std::move(item));
  return list;
}

}  // namespace

/// True for a child that is to be left out; decode() has noted the path of an object already.
bool FromValue::skip(const Key& key, const Value& value) {
  if (const auto* opaque = value.get_if<Opaque>()) return !opaque->owner;
  const auto* integer = value.get_if<Integer>();
  if (python_objects_ != PythonObjects::kSkip || integer == nullptr || integer->to_int64()) return false;
  skipped_.push_back(path() + "/" + encode_component(key.text));
  return true;
}

std::string FromValue::path() const {
  return join_components(components_);
}

std::shared_ptr<void> FromValue::decode(const std::string& path, const std::string& location, const Value& leaf) {
  const auto* opaque = leaf.get_if<Opaque>();
  try {
    if (opaque == nullptr) return std::make_shared<at::Tensor>(decode_tensor(*leaf.get_if<EncodedTensor>()));
    if (opaque->serializer != kTorchSave) {
      throw Error(ErrorCode::kUnsupported, "the serializer '" + opaque->serializer + "' is not known");
    }
    return std::make_shared<c10::IValue>(load_archive(opaque->bytes.view()));
  } catch (const Error& error) {
    if (opaque != nullptr && error.code() == ErrorCode::kUnsupported && python_objects_ == PythonObjects::kSkip) {
      skipped_.push_back(path);
      return nullptr;
    }
    std::string context = "entry '" + path + "'";
    if (opaque != nullptr) context += " of type " + opaque->type_name;
    throw error.with_context(context + " (object '" + location + "')");
  }
}

c10::IValue FromValue::convert(const std::string& path, const Value& value) {
  components_ = {path};
  return convert_node(value);
}

StateDict FromValue::convert_state(const std::string& key, const Value& value) {
  const auto* dict = value.get_if<Dict>();
  if (dict == nullptr) {
    throw Error(ErrorCode::kUnsupported, "what is saved under '" + key + "' is no dict: read it with read_object");
  }
  components_ = {encode_component(key)};
  StateDict state;
  state.set_ordered(dict->ordered);
  for (const auto& [name, child] : dict->items) {
    if (name.is_int) {
      throw Error(ErrorCode::kUnsupported, "the state saved under '" + key + "' has the number " + name.text +
                                               " as a key: read it with read_object");
    }
    if (skip(name, child)) continue;
    components_.push_back(encode_component(name.text));
    state.set(name.text, convert_node(child));
    components_.pop_back();
  }
  return state;
}

c10::IValue FromValue::convert_node(const Value& value) {
  if (const auto* list = value.get_if<List>()) return convert_list(*list);
  if (const auto* dict = value.get_if<Dict>()) return convert_dict(*dict);
  if (const auto* view = value.get_if<TensorView>()) {
    const at::Tensor& tensor = tensor_of(*view);
    const auto& deferred = targets_.deferred();
    if (deferred.empty()) return tensor;
    const auto target = deferred.find(path());
    if (target == deferred.end()) return tensor;
    const at::NoGradGuard no_grad;
    target->second.detach().copy_(tensor);
    return target->second;
  }
  if (const auto* encoded = value.get_if<EncodedTensor>()) {
    return convert_tensor(*static_cast<const at::Tensor*>(encoded->owner.get()), encoded->target.get());
  }
  if (const auto* opaque = value.get_if<Opaque>()) {
    return opaque->owner ? *static_cast<const c10::IValue*>(opaque->owner.get()) : c10::IValue();
  }
  if (const auto* integer = value.get_if<Integer>()) {
    const auto number = integer->to_int64();
    if (!number) {
      if (python_objects_ == PythonObjects::kSkip) {  // in a list: None takes its place
        skipped_.push_back(path());
        return {};
      }
      throw Error(ErrorCode::kUnsupported,
                  "'" + path() + "' is an integer of more than 64 bits, which C++ can't have: " + integer->decimal);
    }
    return *number;
  }
  if (const auto* number = value.get_if<double>()) return *number;
  if (const auto* truth = value.get_if<bool>()) return *truth;
  if (const auto* text = value.get_if<std::string>()) return *text;
  if (const auto* bytes = value.get_if<Bytes>()) return to_ivalue(*bytes);
  return to_ivalue(from_leaf(*value.get_if<ShardedTensor>()));
}

/// An encoded tensor, in the memory of its target if that can hold the same value.
c10::IValue FromValue::convert_tensor(const at::Tensor& tensor, const Value* target) {
  const auto* encoded = target == nullptr ? nullptr : target->get_if<EncodedTensor>();
  const auto* view = target == nullptr ? nullptr : target->get_if<TensorView>();
  if (view == nullptr && encoded == nullptr) return tensor;
  const at::Tensor& memory = view != nullptr ? tensor_of(*view) : *static_cast<const at::Tensor*>(encoded->owner.get());
  if (tensor.is_quantized() && !same_quantizer(memory, tensor)) return tensor;
  const at::NoGradGuard no_grad;
  memory.detach().copy_(tensor);
  return memory;
}

c10::IValue FromValue::convert_list(const List& list) {
  std::vector<c10::IValue> items;
  items.reserve(list.items.size());
  for (const Value& item : list.items) {
    components_.push_back(std::to_string(items.size()));
    items.push_back(convert_node(item));
    components_.pop_back();
  }
  return typed_list(std::move(items));
}

c10::IValue FromValue::convert_dict(const Dict& dict) {
  bool all_int = !dict.items.empty();
  bool all_text = true;
  for (const auto& [key, child] : dict.items) {
    all_int = all_int && key.is_int;
    all_text = all_text && !key.is_int;
  }
  const c10::TypePtr type = all_text  ? c10::TypePtr(c10::StringType::get())
                            : all_int ? c10::TypePtr(c10::IntType::get())
                                      : c10::TypePtr(c10::AnyType::get());
  c10::impl::GenericDict result(type, c10::AnyType::get());
  for (const auto& [key, child] : dict.items) {
    if (skip(key, child)) continue;
    components_.push_back(encode_component(key.text));
    c10::IValue name = key.text;
    if (key.is_int) {
      const auto number = Integer(key.text).to_int64();
      if (!number) throw Error(ErrorCode::kUnsupported, "'" + path() + "' has a key of more than 64 bits");
      name = *number;
    }
    result.insert(std::move(name), convert_node(child));
    components_.pop_back();
  }
  return result;
}

}  // namespace torchsnapshot::libtorch
