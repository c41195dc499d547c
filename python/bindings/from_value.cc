#include "from_value.h"

#include <nanobind/stl/string.h>

#include <utility>

#include "core/path_codec.h"
#include "hooks.h"
#include "tensor_leaf.h"
#include "text.h"
#include "torchsnapshot/error.h"

namespace nb = nanobind;

namespace torchsnapshot::python {
namespace {

nb::object to_int(const Integer& integer) {
  if (const auto small = integer.to_int64()) return nb::int_(*small);
  nb::object number = nb::steal(PyLong_FromString(integer.decimal.c_str(), nullptr, 10));
  if (!number.is_valid()) nb::raise_python_error();
  return number;
}

nb::tuple to_tuple(const Dims& dims) {
  nb::list list;
  for (const std::int64_t dim : dims) list.append(dim);
  return nb::tuple(list);
}

nb::object object_of(const std::shared_ptr<void>& owner) {
  return nb::borrow(static_cast<PyObject*>(owner.get()));
}

/// The face's own tensor of a leaf of the target, or null.
PyObject* owner_of(const Value& leaf) {
  if (const auto* view = leaf.get_if<TensorView>()) return static_cast<PyObject*>(view->owner.get());
  if (const auto* encoded = leaf.get_if<EncodedTensor>()) return static_cast<PyObject*>(encoded->owner.get());
  return nullptr;
}

}  // namespace

nb::object FromValue::convert(const std::string& path, Value value) {
  components_ = {path};
  return convert_node(value);
}

nb::object FromValue::convert_node(Value& value) {
  if (auto* list = value.get_if<List>()) {
    nb::list result;
    for (std::size_t i = 0; i < list->items.size(); ++i) {
      if (needs_paths_) components_.push_back(std::to_string(i));
      result.append(convert_node(list->items[i]));
      if (needs_paths_) components_.pop_back();
    }
    return result;
  }
  if (auto* dict = value.get_if<Dict>()) {
    nb::object result =
        dict->ordered ? nb::handle(reinterpret_cast<PyObject*>(Hooks::get().ordered_dict_type))() : nb::dict();
    for (auto& [key, child] : dict->items) {
      if (needs_paths_) components_.push_back(encode_component(key.text));
      const nb::object child_key = key.is_int ? to_int(Integer(key.text)) : to_str(key.text);
      if (PyObject_SetItem(result.ptr(), child_key.ptr(), convert_node(child).ptr()) != 0) nb::raise_python_error();
      if (needs_paths_) components_.pop_back();
    }
    return result;
  }
  if (const auto* view = value.get_if<TensorView>()) return convert_view(*view);
  if (const auto* encoded = value.get_if<EncodedTensor>()) {
    nb::object decoded = object_of(encoded->owner);
    PyObject* const target = encoded->target ? owner_of(*encoded->target) : nullptr;
    return target == nullptr ? decoded : nb::object(Hooks::get().fill(nb::handle(target), decoded));
  }
  if (const auto* sharded = value.get_if<ShardedTensor>()) return object_of(sharded->owner);
  if (const auto* opaque = value.get_if<Opaque>()) return object_of(opaque->owner);
  if (const auto* integer = value.get_if<Integer>()) return to_int(*integer);
  if (const auto* number = value.get_if<double>()) return nb::float_(*number);
  if (const auto* truth = value.get_if<bool>()) return nb::bool_(*truth);
  if (const auto* text = value.get_if<std::string>()) return to_str(*text);
  return to_bytes(value.get_if<Bytes>()->data);
}

nb::object FromValue::convert_view(const TensorView& view) {
  nb::object tensor = object_of(view.owner);
  if (!needs_paths_) return tensor;
  const auto found = targets_.deferred().find(join_components(components_));
  if (found == targets_.deferred().end()) return tensor;
  return Hooks::get().fill(nb::handle(found->second), tensor);
}

std::shared_ptr<void> decode_leaf(const std::string& path, const std::string& location, const Value& leaf,
                                  bool weights_only, ToValue& keeper) {
  const nb::gil_scoped_acquire gil;
  const Hooks& hooks = Hooks::get();
  nb::object decoded;
  if (const auto* opaque = leaf.get_if<Opaque>()) {
    decoded = hooks.deserialize(to_bytes(opaque->bytes.view()), opaque->serializer, to_str(path), to_str(location),
                                weights_only);
  } else {
    const auto& encoded = *leaf.get_if<EncodedTensor>();
    nb::list parts;
    for (const EncodedPart& part : encoded.parts) {
      parts.append(nb::make_tuple(to_tuple(part.box.offsets), to_tuple(part.box.sizes), part.serializer,
                                  to_bytes(part.bytes.view())));
    }
    decoded = hooks.decode_tensor(hooks.torch_dtype(encoded.dtype), to_tuple(encoded.shape), parts, to_str(path),
                                  to_str(location));
  }
  PyObject* const object = decoded.ptr();
  keeper.keep(std::move(decoded));
  return borrow(object);
}

TensorView allocate_tensor(DType dtype, const Dims& shape, ToValue& keeper) {
  const nb::gil_scoped_acquire gil;
  const Hooks& hooks = Hooks::get();
  nb::object tensor = hooks.allocate(hooks.torch_dtype(dtype), to_tuple(shape));
  auto view = view_of(tensor.ptr());
  if (!view) throw Error(ErrorCode::kInternal, "torch.empty gave a tensor without plain memory");
  keeper.keep(std::move(tensor));
  return *std::move(view);
}

}  // namespace torchsnapshot::python
