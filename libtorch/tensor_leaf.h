// Tensors of torch as leaves of the engine.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>

#include "torchsnapshot/tensor.h"
#include "torchsnapshot/value.h"

namespace torchsnapshot::libtorch {

/// Nothing for a type that the engine does not know.
std::optional<DType> to_dtype(at::ScalarType type) noexcept;
at::ScalarType to_scalar_type(DType dtype);

/// True for plain strided memory on some device: what view_of takes.
bool is_plain(const at::Tensor& tensor);
/// A view that owns a reference to the tensor. `writable` for a target.
TensorView view_of(const at::Tensor& tensor, DType dtype, bool writable);
/// The tensor that view_of or allocate made the view of.
const at::Tensor& tensor_of(const TensorView& view);
/// Memory for a restored tensor without a target.
TensorView allocate(DType dtype, const Dims& shape);
/// The tensor of an encoded leaf (quantized; complex in old snapshots). Throws Error(kCorrupt).
at::Tensor decode_tensor(const EncodedTensor& encoded);

}  // namespace torchsnapshot::libtorch
