#include "libtorch/tensor_leaf.h"

#include <ATen/Context.h>
#include <ATen/ops/_make_per_channel_quantized_tensor.h>
#include <ATen/ops/_make_per_tensor_quantized_tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/version.h>

#include <cstring>
#include <string>
#include <utility>

#include "device/copy_plan.h"
#include "device/cuda_driver.h"
#include "libtorch/archive.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot::libtorch {
namespace {

constexpr std::pair<at::ScalarType, DType> kTypes[] = {
    {at::kDouble, DType::kFloat64},
    {at::kFloat, DType::kFloat32},
    {at::kHalf, DType::kFloat16},
    {at::kBFloat16, DType::kBFloat16},
    {at::kComplexDouble, DType::kComplex128},
    {at::kComplexFloat, DType::kComplex64},
    {at::ScalarType::ComplexHalf, DType::kComplex32},
    {at::kLong, DType::kInt64},
    {at::kInt, DType::kInt32},
    {at::kShort, DType::kInt16},
    {at::kChar, DType::kInt8},
    {at::ScalarType::UInt64, DType::kUInt64},
    {at::ScalarType::UInt32, DType::kUInt32},
    {at::ScalarType::UInt16, DType::kUInt16},
    {at::kByte, DType::kUInt8},
    {at::kBool, DType::kBool},
    {at::ScalarType::Float8_e4m3fn, DType::kFloat8E4M3FN},
    {at::ScalarType::Float8_e4m3fnuz, DType::kFloat8E4M3FNUZ},
    {at::ScalarType::Float8_e5m2, DType::kFloat8E5M2},
    {at::ScalarType::Float8_e5m2fnuz, DType::kFloat8E5M2FNUZ},
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 8
    {at::ScalarType::Float8_e8m0fnu, DType::kFloat8E8M0FNU},
    {at::ScalarType::Float4_e2m1fn_x2, DType::kFloat4E2M1FNx2},
#endif
    {at::ScalarType::Bits8, DType::kBits8},
    {at::ScalarType::Bits16, DType::kBits16},
    {at::kQInt8, DType::kQInt8},
    {at::kQUInt8, DType::kQUInt8},
    {at::kQInt32, DType::kQInt32},
};

[[noreturn]] void fail_size(std::size_t size) {
  throw Error(ErrorCode::kCorrupt, std::to_string(size) + " bytes can't be a quantized tensor of this shape");
}

template <typename T>
T read_at(std::span<const std::byte> bytes, std::size_t offset) {
  T value{};
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

/// A tensor of its own with the bytes from `offset` on.
at::Tensor tensor_from(std::span<const std::byte> bytes, std::size_t offset, const Dims& shape, at::ScalarType type) {
  at::Tensor tensor = at::empty(shape, type);
  std::memcpy(tensor.mutable_data_ptr(), bytes.data() + offset, tensor.nbytes());
  return tensor;
}

at::Tensor decode_part(const EncodedPart& part, DType dtype) {
  const std::span<const std::byte> bytes = part.bytes.span();
  const Dims& shape = part.box.sizes;
  if (part.serializer == kTorchSave) {
    const c10::IValue value = load_tensor_archive(part.bytes.view());
    if (!value.isTensor() || value.toTensor().sizes() != at::IntArrayRef(shape) ||
        to_dtype(value.toTensor().scalar_type()) != dtype) {
      throw Error(ErrorCode::kCorrupt, "the archive holds another tensor than the entry says");
    }
    return value.toTensor();
  }
  const at::ScalarType integers = dtype == DType::kQInt8 ? at::kChar : dtype == DType::kQUInt8 ? at::kByte : at::kInt;
  const std::size_t elements = dense_bytes(dtype, shape);
  if (part.serializer == kPerTensorQTensor) {
    if (bytes.size() != elements + 16) fail_size(bytes.size());
    return at::_make_per_tensor_quantized_tensor(tensor_from(bytes, 0, shape, integers),
                                                 read_at<double>(bytes, elements),
                                                 read_at<std::int64_t>(bytes, elements + 8));
  }
  if (part.serializer != kPerChannelQTensor) {
    throw Error(ErrorCode::kUnsupported, "tensors with the serializer '" + part.serializer + "' can't be read");
  }
  if (bytes.size() < 8) fail_size(bytes.size());
  const auto axis = read_at<std::int64_t>(bytes, 0);
  if (axis < 0 || axis >= static_cast<std::int64_t>(shape.size())) {
    throw Error(ErrorCode::kCorrupt, "a quantized tensor has the axis " + std::to_string(axis));
  }
  const std::int64_t channels = shape[static_cast<std::size_t>(axis)];
  const std::size_t table = static_cast<std::size_t>(channels) * 8;
  if (bytes.size() != 8 + elements + 2 * table) fail_size(bytes.size());
  return at::_make_per_channel_quantized_tensor(tensor_from(bytes, 8, shape, integers),
                                                tensor_from(bytes, 8 + elements, {channels}, at::kDouble),
                                                tensor_from(bytes, 8 + elements + table, {channels}, at::kLong), axis);
}

}  // namespace

std::optional<DType> to_dtype(at::ScalarType type) noexcept {
  for (const auto& [torch_type, dtype] : kTypes) {
    if (torch_type == type) return dtype;
  }
  return std::nullopt;
}

at::ScalarType to_scalar_type(DType dtype) {
  for (const auto& [torch_type, known] : kTypes) {
    if (known == dtype) return torch_type;
  }
  throw Error(ErrorCode::kUnsupported, "this version of libtorch has no " + std::string(dtype_name(dtype)));
}

bool is_plain(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && !tensor.is_quantized() && !tensor.is_meta() && !tensor.is_nested() &&
         !tensor.is_conj() && !tensor.is_neg() && tensor.has_storage() && to_dtype(tensor.scalar_type()).has_value();
}

namespace {

/// Has the engine copy a tensor on a CUDA device by itself. Torch copies what is on other devices, what lies there in
/// short rows, and everything where it can't tell its stream.
void find_cuda(const at::Tensor& tensor, TensorView& view) {
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 10
  if (!tensor.is_cuda() || at::Context::hasROCM() || !is_cuda_driver_wanted() || !lies_in_long_rows(view)) return;
  const c10::Stream stream = c10::impl::getDeviceGuardImpl(at::kCUDA)->getStream(tensor.device());
  view.device = DeviceType::kCuda;
  view.stream = {.device = tensor.device().index(), .handle = stream.native_handle()};
#else
  static_cast<void>(tensor);
  static_cast<void>(view);
#endif
}

}  // namespace

TensorView view_of(const at::Tensor& tensor, DType dtype, bool writable) {
  TensorView view;
  const void* data = writable ? tensor.mutable_data_ptr() : tensor.const_data_ptr();
  view.data = static_cast<std::byte*>(const_cast<void*>(data));
  view.dtype = dtype;
  view.shape = tensor.sizes().vec();
  view.strides = tensor.strides().vec();
  view.device = tensor.is_cpu() ? DeviceType::kCpu : DeviceType::kOther;
  view.owner = std::make_shared<at::Tensor>(tensor);
  find_cuda(tensor, view);
  return view;
}

const at::Tensor& tensor_of(const TensorView& view) {
  if (!view.owner) throw Error(ErrorCode::kInternal, "a view without its tensor");
  return *static_cast<const at::Tensor*>(view.owner.get());
}

TensorView allocate(DType dtype, const Dims& shape) {
  try {
    return view_of(at::empty(shape, to_scalar_type(dtype)), dtype, true);
  } catch (const c10::Error& error) {
    throw Error(ErrorCode::kNoSpace, std::string("making a tensor: ") + error.what_without_backtrace());
  }
}

at::Tensor decode_tensor(const EncodedTensor& encoded) {
  try {
    if (encoded.parts.size() == 1 && encoded.parts[0].box == Box::whole(encoded.shape)) {
      return decode_part(encoded.parts[0], encoded.dtype);
    }
    at::Tensor whole = at::empty(encoded.shape, to_scalar_type(encoded.dtype));
    for (const EncodedPart& part : encoded.parts) {
      at::Tensor region = whole;
      for (std::size_t d = 0; d < encoded.shape.size(); ++d) {
        region = region.narrow(static_cast<std::int64_t>(d), part.box.offsets[d], part.box.sizes[d]);
      }
      region.copy_(decode_part(part, encoded.dtype));
    }
    return whole;
  } catch (const c10::Error& error) {
    throw Error(ErrorCode::kCorrupt, error.what_without_backtrace());
  }
}

}  // namespace torchsnapshot::libtorch
