#include "to_value.h"

#include <nanobind/stl/string.h>

#include <memory>
#include <unordered_set>
#include <utility>

#include "core/path_codec.h"
#include "gil_object.h"
#include "hooks.h"
#include "state/flatten.h"
#include "tensor_leaf.h"
#include "text.h"
#include "torchsnapshot/error.h"

namespace nb = nanobind;

namespace torchsnapshot::python {
namespace {

/// Decimal text of an exact int; nothing where Python refuses to make it (over 4300 digits).
std::optional<Integer> to_integer(PyObject* number) {
  int overflow = 0;
  const long long small = PyLong_AsLongLongAndOverflow(number, &overflow);
  if (overflow == 0) return Integer(small);
  const nb::object text = nb::steal(PyObject_Str(number));
  if (!text.is_valid()) {
    PyErr_Clear();
    return std::nullopt;
  }
  return Integer(text_of(text.ptr()));
}

/// The number that int(text) would give, as text; nothing if it is none.
std::optional<std::string> int_of_text(PyObject* text) {
  const nb::object number = nb::steal(PyLong_FromUnicodeObject(text, 10));
  if (!number.is_valid()) {
    PyErr_Clear();
    return std::nullopt;
  }
  const auto integer = to_integer(number.ptr());
  return integer ? std::optional(integer->decimal) : std::nullopt;
}

Dims to_dims(const nb::handle& sequence) {
  Dims dims;
  for (const nb::handle item : sequence) dims.push_back(nb::cast<std::int64_t>(item));
  return dims;
}

using Children = std::vector<std::pair<Key, PyObject*>>;

/// The children of a dict, if inflating would give back exactly its keys: str and int only (no subclasses, no bool),
/// and no two that read back alike, such as 1 and "01".
std::optional<Children> flattenable_children(PyObject* dict, bool ordered) {
  Children children;
  children.reserve(static_cast<std::size_t>(PyDict_Size(dict)));
  std::unordered_set<std::string> numbers;
  std::vector<PyObject*> texts;
  const auto add = [&](PyObject* key, PyObject* value) {
    if (PyUnicode_CheckExact(key)) {
      children.emplace_back(text_of(key), value);
      texts.push_back(key);
      return true;
    }
    if (!PyLong_CheckExact(key)) return false;
    const auto integer = to_integer(key);
    if (!integer) return false;
    numbers.insert(integer->decimal);
    children.emplace_back(*integer, value);
    return true;
  };
  if (ordered) {
    // It keeps an order of its own (move_to_end) beside that of the dict below it. The dict holds what the list lends.
    const nb::list items(nb::handle(dict).attr("items")());
    for (const nb::handle item : items) {
      if (!add(PyTuple_GET_ITEM(item.ptr(), 0), PyTuple_GET_ITEM(item.ptr(), 1))) return std::nullopt;
    }
  } else {
    Py_ssize_t position = 0;
    PyObject* key = nullptr;
    PyObject* value = nullptr;
    while (PyDict_Next(dict, &position, &key, &value) != 0) {
      if (!add(key, value)) return std::nullopt;
    }
  }
  if (!numbers.empty()) {
    for (PyObject* text : texts) {
      const auto number = int_of_text(text);
      if (number && numbers.contains(*number)) return std::nullopt;
    }
  }
  return children;
}

}  // namespace

ToValue::ToValue(nb::object prepare, nb::object group) : prepare_(std::move(prepare)), group_(std::move(group)) {}

Value ToValue::to_save(const std::string& key, nb::handle object) {
  return convert_root(encode_component(key), Purpose::kSave, object);
}

Value ToValue::to_fill(const std::string& key, nb::handle object) {
  return convert_root(encode_component(key), Purpose::kFill, object);
}

Value ToValue::to_fill_at(const std::string& path, nb::handle object) {
  return convert_root(path, Purpose::kFill, object);
}

Value ToValue::convert_root(const std::string& path, Purpose purpose, nb::handle object) {
  purpose_ = purpose;
  root_ = path;
  steps_.clear();
  keep(nb::borrow(object));
  return convert(object.ptr(), 0);
}

std::string ToValue::path() const {
  std::string text = root_;
  for (const Step& step : steps_) {
    text += '/';
    text += step.key == nullptr ? std::to_string(step.index) : encode_component(step.key->text);
  }
  return text;
}

Value ToValue::convert(PyObject* object, int depth) {
  if (depth > kMaxDepth) {
    throw Error(ErrorCode::kInvalidArgument, "state below '" + path().substr(0, 200) + "' is nested more than " +
                                                 std::to_string(kMaxDepth) + " levels deep, or contains itself");
  }
  const Hooks& hooks = Hooks::get();
  if (PyObject_TypeCheck(object, hooks.tensor_type)) return convert_tensor(object);
  if (PyDict_CheckExact(object)) return convert_dict(object, false, depth);
  if (Py_TYPE(object) == hooks.ordered_dict_type) return convert_dict(object, true, depth);
  if (PyList_CheckExact(object)) {
    List list;
    list.items.reserve(static_cast<std::size_t>(PyList_GET_SIZE(object)));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(object); ++i) {
      steps_.push_back({.key = nullptr, .index = static_cast<std::size_t>(i)});
      list.items.push_back(convert(PyList_GET_ITEM(object, i), depth + 1));
      steps_.pop_back();
    }
    return list;
  }
  if (PyBool_Check(object)) return object == Py_True;
  if (PyLong_CheckExact(object)) {
    if (auto integer = to_integer(object)) return *std::move(integer);
    return convert_opaque(object);
  }
  if (PyFloat_CheckExact(object)) return PyFloat_AS_DOUBLE(object);
  if (PyUnicode_CheckExact(object)) return text_of(object);
  if (PyBytes_CheckExact(object)) {
    return Bytes{std::string(PyBytes_AS_STRING(object), static_cast<std::size_t>(PyBytes_GET_SIZE(object)))};
  }
  return convert_opaque(object);
}

Value ToValue::convert_dict(PyObject* dict, bool ordered, int depth) {
  auto children = flattenable_children(dict, ordered);
  if (!children) return convert_opaque(dict);
  Dict result;
  result.ordered = ordered;
  result.items.reserve(children->size());
  for (auto& [key, value] : *children) {
    steps_.push_back({.key = &key, .index = 0});
    Value child = convert(value, depth + 1);
    steps_.pop_back();
    result.items.emplace_back(std::move(key), std::move(child));
  }
  return result;
}

Value ToValue::convert_tensor(PyObject* tensor) {
  if (purpose_ == Purpose::kSave && !prepare_.is_none()) {
    nb::object prepared = Hooks::get().prepare_tensor(prepare_, to_str(path()), nb::handle(tensor));
    tensor = prepared.ptr();
    keep(std::move(prepared));
  }
  if (auto view = view_of(tensor)) {
    if (purpose_ == Purpose::kSave && !own_.is_none()) own(tensor, *view);
    return *std::move(view);
  }
  return convert_special_tensor(tensor);
}

void ToValue::own(PyObject* tensor, TensorView& view) const {
  if (view.device == DeviceType::kOther) return;
  if (view.device == DeviceType::kCpu && (view.nbytes() < kLargeBytes || !view.is_contiguous())) return;
  nb::object owner = own_(nb::handle(tensor), to_str(path()));
  if (owner.is_none()) return;
  PyObject* const object = owner.ptr();
  view.owner = std::shared_ptr<void>(std::make_shared<GilObject>(std::move(owner)), object);
}

Value ToValue::convert_special_tensor(PyObject* tensor) {
  const Hooks& hooks = Hooks::get();
  const auto form =
      nb::cast<nb::tuple>(hooks.encode_tensor(nb::handle(tensor), to_str(path()), purpose_ == Purpose::kSave));
  const auto kind = nb::cast<std::string>(form[0]);
  if (kind == "object") return convert_opaque(tensor);
  if (kind == "sharded") return convert_sharded(tensor);
  if (kind == "tensor") {
    nb::object plain = nb::borrow(form[1]);
    auto view = view_of(plain.ptr());
    if (!view) throw Error(ErrorCode::kInternal, "'" + path() + "': the tensor has no plain form");
    keep(std::move(plain));
    return *std::move(view);
  }
  EncodedTensor encoded;
  const auto dtype = hooks.dtype_of(form[1].ptr());
  if (!dtype) {
    throw Error(ErrorCode::kUnsupported,
                "'" + path() + "' has dtype " + nb::cast<std::string>(nb::str(form[1])) + ", which can't be stored");
  }
  encoded.dtype = *dtype;
  for (const nb::handle size : form[2]) encoded.shape.push_back(nb::cast<std::int64_t>(size));
  encoded.owner = borrow(tensor);
  if (kind == "deferred") {
    deferred_.emplace(path(), tensor);
  } else if (purpose_ == Purpose::kSave) {
    nb::object bytes = nb::borrow(form[4]);
    const SharedBytes view(std::as_bytes(std::span(PyBytes_AS_STRING(bytes.ptr()),
                                                   static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.ptr())))),
                           nullptr);
    keep(std::move(bytes));
    encoded.parts.push_back(
        {.box = Box::whole(encoded.shape), .serializer = nb::cast<std::string>(form[3]), .bytes = view});
  }
  return encoded;
}

Value ToValue::convert_sharded(PyObject* tensor) {
  const Hooks& hooks = Hooks::get();
  const auto form = nb::cast<nb::tuple>(hooks.describe_sharded(nb::handle(tensor), to_str(path()), group_));
  ShardedTensor sharded;
  const auto dtype = hooks.dtype_of(form[0].ptr());
  if (!dtype) {
    throw Error(ErrorCode::kUnsupported,
                "'" + path() + "' has dtype " + nb::cast<std::string>(nb::str(form[0])) + ", which can't be stored");
  }
  sharded.dtype = *dtype;
  sharded.shape = to_dims(form[1]);
  for (const nb::handle item : form[2]) {
    const auto shard = nb::cast<nb::tuple>(item);
    nb::object local = nb::borrow(shard[2]);
    auto view = view_of(local.ptr());
    if (!view) {
      throw Error(ErrorCode::kUnsupported,
                  "'" + path() +
                      "' is sharded, and the shard of this rank is no plain strided tensor (conj or neg view, "
                      "quantized, sparse, meta): such shards can't be saved or filled");
    }
    keep(std::move(local));
    sharded.shards.push_back({{to_dims(shard[0]), to_dims(shard[1])}, *std::move(view)});
  }
  sharded.layout.mesh_shape = to_dims(form[3]);
  sharded.layout.mesh = to_dims(form[4]);
  for (const nb::handle dims : form[5]) sharded.layout.dim_map.push_back(to_dims(dims));
  sharded.replicas = to_dims(form[6]);
  sharded.owner = borrow(tensor);
  return sharded;
}

Value ToValue::convert_opaque(PyObject* object) {
  Opaque opaque;
  if (purpose_ == Purpose::kFill) {
    opaque.owner = borrow(object);  // stays, if what was saved is damaged
    return opaque;
  }
  const auto form = nb::cast<nb::tuple>(Hooks::get().serialize(nb::handle(object), to_str(path())));
  opaque.serializer = "torch_save";
  opaque.type_name = nb::cast<std::string>(form[0]);
  nb::object bytes = nb::borrow(form[1]);
  opaque.bytes = SharedBytes(
      std::as_bytes(std::span(PyBytes_AS_STRING(bytes.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.ptr())))),
      nullptr);
  keep(std::move(bytes));
  return opaque;
}

}  // namespace torchsnapshot::python
