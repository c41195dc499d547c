#include "tensor_leaf.h"

#include <nanobind/stl/pair.h>

#include <cstdint>
#include <utility>

#include "device/copy_plan.h"
#include "device/cuda_driver.h"
#include "hooks.h"

namespace nb = nanobind;

namespace torchsnapshot::python {
namespace {

std::optional<DType> dtype_of(dlpack::DataType type) {
  const auto key = [](int code, int bits, int lanes = 1) { return (code << 16) | (bits << 8) | lanes; };
  switch (key(type.code, type.bits, type.lanes)) {
    case key(0, 8):
      return DType::kInt8;
    case key(0, 16):
      return DType::kInt16;
    case key(0, 32):
      return DType::kInt32;
    case key(0, 64):
      return DType::kInt64;
    case key(1, 8):
      return DType::kUInt8;
    case key(1, 16):
      return DType::kUInt16;
    case key(1, 32):
      return DType::kUInt32;
    case key(1, 64):
      return DType::kUInt64;
    case key(2, 16):
      return DType::kFloat16;
    case key(2, 32):
      return DType::kFloat32;
    case key(2, 64):
      return DType::kFloat64;
    case key(4, 16):
      return DType::kBFloat16;
    case key(5, 32):
      return DType::kComplex32;
    case key(5, 64):
      return DType::kComplex64;
    case key(5, 128):
      return DType::kComplex128;
    case key(6, 8):
      return DType::kBool;
    default:
      return std::nullopt;  // the rarer ones go by their torch name
  }
}

/// True when a flag method of the tensor says so ("is_conj").
bool flag(PyObject* tensor, PyObject* method) {
  PyObject* const arguments[] = {tensor};
  const nb::object result = nb::steal(PyObject_VectorcallMethod(method, arguments, 1, nullptr));
  if (!result.is_valid()) nb::raise_python_error();
  return result.ptr() == Py_True;
}

/// The fast way: torch lends shape, strides and pointer through a C table.
std::optional<TensorView> borrow_by_dlpack(PyObject* tensor, const Hooks& hooks) {
  dlpack::Tensor lent{};
  if (hooks.exchange_api->tensor_from_py_object(tensor, &lent) != 0) {
    PyErr_Clear();  // quantized, sparse, meta …: described by attributes
    return std::nullopt;
  }
  const auto dtype = dtype_of(lent.dtype);
  if (!dtype) return std::nullopt;
  TensorView view;
  view.data = static_cast<std::byte*>(lent.data) + lent.byte_offset;
  view.dtype = *dtype;
  view.shape.assign(lent.shape, lent.shape + lent.ndim);
  if (lent.strides != nullptr) {
    view.strides.assign(lent.strides, lent.strides + lent.ndim);
  } else {
    view.strides = row_major_strides(view.shape);
  }
  const bool on_host = lent.device.type == dlpack::kCpu || lent.device.type == dlpack::kCudaHost ||
                       lent.device.type == dlpack::kRocmHost;
  view.device = on_host ? DeviceType::kCpu : DeviceType::kOther;
  view.owner = borrow(tensor);
  return view;
}

Dims to_dims(const nb::handle& sequence) {
  Dims dims;
  for (const nb::handle item : sequence) dims.push_back(nb::cast<std::int64_t>(item));
  return dims;
}

/// The general way: attributes, read by Python (describe_tensor).
std::optional<TensorView> borrow_by_attributes(PyObject* tensor, const Hooks& hooks) {
  const nb::object described = hooks.describe_tensor(nb::handle(tensor));
  if (described.is_none()) return std::nullopt;
  const auto fields = nb::cast<nb::tuple>(described);
  const auto dtype = hooks.dtype_of(fields[1].ptr());
  if (!dtype) return std::nullopt;
  TensorView view;
  view.data = reinterpret_cast<std::byte*>(nb::cast<std::uintptr_t>(fields[0]));  // NOLINT(performance-no-int-to-ptr)
  view.dtype = *dtype;
  view.shape = to_dims(fields[2]);
  view.strides = to_dims(fields[3]);
  view.device = nb::cast<bool>(fields[4]) ? DeviceType::kCpu : DeviceType::kOther;
  view.owner = borrow(tensor);
  return view;
}

/// Has the engine copy a tensor on a CUDA device by itself. Torch copies what is on other devices, and what lies there
/// in short rows.
void find_cuda(PyObject* tensor, const Hooks& hooks, TensorView& view) {
  if (view.device == DeviceType::kCpu || !is_cuda_driver_wanted() || !lies_in_long_rows(view)) return;
  const nb::object found = hooks.cuda_stream(nb::handle(tensor));
  if (found.is_none()) return;
  const auto [device, stream] = nb::cast<std::pair<std::int32_t, std::uintptr_t>>(found);
  view.device = DeviceType::kCuda;
  view.stream = {.device = device, .handle = reinterpret_cast<void*>(stream)};  // NOLINT(performance-no-int-to-ptr)
}

std::optional<TensorView> borrow_view(PyObject* tensor, const Hooks& hooks) {
  PyTypeObject* const type = Py_TYPE(tensor);
  if (hooks.exchange_api != nullptr && (type == hooks.tensor_type || type == hooks.parameter_type)) {
    static PyObject* const is_conj = PyUnicode_InternFromString("is_conj");
    static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
    auto view = borrow_by_dlpack(tensor, hooks);
    // The table hands out conj and neg views as if the bit were not set. Only complex tensors have a conj bit.
    if (view && !flag(tensor, is_neg)) {
      const bool complex =
          view->dtype == DType::kComplex32 || view->dtype == DType::kComplex64 || view->dtype == DType::kComplex128;
      if (!complex || !flag(tensor, is_conj)) return view;
      return std::nullopt;
    }
  }
  return borrow_by_attributes(tensor, hooks);
}

}  // namespace

std::shared_ptr<void> borrow(PyObject* object) noexcept {
  return {std::shared_ptr<void>(), object};  // no control block, no reference count
}

std::optional<TensorView> view_of(PyObject* tensor) {
  const Hooks& hooks = Hooks::get();
  auto view = borrow_view(tensor, hooks);
  if (view) find_cuda(tensor, hooks, *view);
  return view;
}

}  // namespace torchsnapshot::python
