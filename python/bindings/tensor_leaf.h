// torch tensors as leaves of a Value tree.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <optional>
#include <string>

#include "torchsnapshot/value.h"

namespace torchsnapshot::python {

/// A non-owning handle for TensorView::owner: the converter's keep-alive list holds the reference.
std::shared_ptr<void> borrow(PyObject* object) noexcept;

/// A strided view of a plain tensor that the engine can read and write where it lies. Nothing for those that need a
/// detour: quantized, sparse, meta, conj or neg views, wrapper subclasses, unknown dtypes. Needs the GIL; the
/// caller keeps `tensor` alive.
std::optional<TensorView> view_of(PyObject* tensor);

}  // namespace torchsnapshot::python
