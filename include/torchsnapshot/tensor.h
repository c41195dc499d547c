// What the engine knows of a tensor: element type, strided view, box.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace torchsnapshot {

/// Element types, by torch's names. Every one has a fixed size in whole bytes.
enum class DType : std::uint8_t {
  kFloat64,
  kFloat32,
  kFloat16,
  kBFloat16,
  kComplex128,
  kComplex64,
  kComplex32,
  kInt64,
  kInt32,
  kInt16,
  kInt8,
  kUInt64,
  kUInt32,
  kUInt16,
  kUInt8,
  kBool,
  kFloat8E4M3FN,
  kFloat8E4M3FNUZ,
  kFloat8E5M2,
  kFloat8E5M2FNUZ,
  kFloat8E8M0FNU,
  kFloat4E2M1FNx2,  ///< two elements a byte; one byte counts as one element here, as in torch
  kBits8,
  kBits16,
  kQInt8,  ///< quantized types: elements of this size, scales and zero points beside them
  kQUInt8,
  kQInt32,
};

/// Bytes of one element.
std::size_t item_size(DType dtype) noexcept;
/// torch's name, "torch.float32".
std::string_view dtype_name(DType dtype) noexcept;
/// The inverse of dtype_name; nothing for an unknown name.
std::optional<DType> dtype_from_name(std::string_view name) noexcept;
/// True for kQInt8, kQUInt8 and kQInt32.
bool is_quantized(DType dtype) noexcept;

/// Sizes, strides or offsets, outermost dimension first.
using Dims = std::vector<std::int64_t>;

/// Number of elements of a shape (1 for a 0-d one). Throws Error(kInvalidArgument) when a size is
/// negative or the product of the sizes other than 0 does not fit (so that strides do fit).
std::int64_t element_count(std::span<const std::int64_t> shape);
/// Bytes of a dense tensor, at most 2^63 - 1. Throws as element_count, also when the product does not fit.
std::uint64_t dense_bytes(DType dtype, std::span<const std::int64_t> shape);
/// Row-major strides, in elements; sizes of 0 count as 1. Throws as element_count.
Dims row_major_strides(std::span<const std::int64_t> shape);

/// Where a tensor's memory is.
enum class DeviceType : std::uint8_t {
  kCpu,    ///< memory that the CPU can address
  kCuda,   ///< of a CUDA device (TensorView::stream says which); data is its address there
  kOther,  ///< reached through the DeviceCopier of the face (tensor/device_copy.h)
};

/// A queue of work on a CUDA device.
struct DeviceStream {
  std::int32_t device = 0;  ///< its ordinal
  void* handle = nullptr;   ///< CUstream (or cudaStream_t); null: the default stream
};

/// A tensor's memory, not owned by default: element (i, j, …) is at
/// data + item_size * (i*strides[0] + j*strides[1] + …). Strides are in elements and may be zero
/// or negative. `owner` keeps the memory alive where the view has to (null: the caller does), and
/// gives a face its own object back; the engine never looks into it.
struct TensorView {
  std::byte* data = nullptr;
  DType dtype = DType::kFloat32;
  Dims shape;
  Dims strides;
  DeviceType device = DeviceType::kCpu;
  std::shared_ptr<void> owner;
  /// Of kCuda: the program's stream. What was queued there before a take or restore is over before a copy begins.
  DeviceStream stream = {};

  /// A view of dense row-major CPU memory.
  static TensorView dense(void* data, DType dtype, Dims shape, std::shared_ptr<void> owner = nullptr);

  [[nodiscard]] std::int64_t numel() const { return element_count(shape); }
  /// Bytes of the elements, dense (not of the memory they are strewn over).
  [[nodiscard]] std::uint64_t nbytes() const { return dense_bytes(dtype, shape); }
  /// True when the elements lie in row-major order without gaps (dimensions of size 1 don't count).
  [[nodiscard]] bool is_contiguous() const noexcept;
};

/// An axis-aligned part of an index space: [offsets[d], offsets[d] + sizes[d]) in each dimension.
/// Zero dimensions: the single element of a 0-d tensor.
struct Box {
  Dims offsets;
  Dims sizes;

  /// The whole of `shape`.
  static Box whole(Dims shape) { return {Dims(shape.size(), 0), std::move(shape)}; }
  [[nodiscard]] bool empty() const noexcept;
  friend bool operator==(const Box&, const Box&) = default;
};

/// The common part, or nothing when it has no element. Throws Error(kInternal) for boxes of different rank.
std::optional<Box> intersect(const Box& a, const Box& b);
/// The part of `view` that `box` selects (box in the view's own coordinates). Shares the owner. Throws
/// Error(kInvalidArgument) when the box is not within the view.
TensorView narrow(const TensorView& view, const Box& box);

}  // namespace torchsnapshot
