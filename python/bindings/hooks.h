// The Python functions that the extension calls, and the types it looks for.
#pragma once

#include <nanobind/nanobind.h>

#include <optional>

#include "dlpack_abi.h"
#include "torchsnapshot/tensor.h"

namespace torchsnapshot::python {

/// References to torch and to torchsnapshot._app_state, made once per interpreter. Needs the GIL.
class Hooks {
 public:
  static const Hooks& get();

  PyTypeObject* tensor_type;     ///< torch.Tensor
  PyTypeObject* parameter_type;  ///< torch.nn.Parameter
  PyTypeObject* ordered_dict_type;
  /// torch's table for lending DLPack tensors, or null (torch before 2.10).
  const dlpack::ExchangeApi* exchange_api;

  nanobind::object describe_tensor;  ///< see _app_state.py for each
  nanobind::object cuda_stream;
  nanobind::object prepare_tensor;
  nanobind::object encode_tensor;
  nanobind::object describe_sharded;
  nanobind::object decode_tensor;
  nanobind::object serialize;
  nanobind::object deserialize;
  nanobind::object allocate;
  nanobind::object to_host;
  nanobind::object to_device;
  nanobind::object fill;

  /// The dtype of a torch.dtype object; nothing for one that the engine does not know.
  std::optional<DType> dtype_of(PyObject* torch_dtype) const;
  /// The torch.dtype of a dtype. Raises if this torch has none.
  nanobind::object torch_dtype(DType dtype) const;

 private:
  Hooks();
  nanobind::object torch_;
};

}  // namespace torchsnapshot::python
