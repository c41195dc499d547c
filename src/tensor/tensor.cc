#include "torchsnapshot/tensor.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

std::string to_text(std::span<const std::int64_t> dims) {
  std::string text = "[";
  for (std::size_t d = 0; d < dims.size(); ++d) {
    if (d != 0) text += ", ";
    text += std::to_string(dims[d]);
  }
  return text + "]";
}

[[noreturn]] void throw_too_large(std::span<const std::int64_t> shape) {
  throw Error(ErrorCode::kInvalidArgument, "the shape " + to_text(shape) + " is too large to address");
}

/// End of a box in one dimension; the largest index there is, if that overflows.
std::int64_t end_of(const Box& box, std::size_t d) {
  std::int64_t end = 0;
  return __builtin_add_overflow(box.offsets[d], box.sizes[d], &end) ? std::numeric_limits<std::int64_t>::max() : end;
}

}  // namespace

std::int64_t element_count(std::span<const std::int64_t> shape) {
  std::int64_t nonzero = 1;
  bool has_zero = false;
  bool overflows = false;
  for (const std::int64_t size : shape) {
    if (size < 0) throw Error(ErrorCode::kInvalidArgument, "the shape " + to_text(shape) + " has a negative size");
    if (size == 0) {
      has_zero = true;
    } else {
      overflows = __builtin_mul_overflow(nonzero, size, &nonzero) || overflows;
    }
  }
  if (overflows) throw_too_large(shape);
  return has_zero ? 0 : nonzero;
}

std::uint64_t dense_bytes(DType dtype, std::span<const std::int64_t> shape) {
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(element_count(shape), static_cast<std::int64_t>(item_size(dtype)), &bytes)) {
    throw_too_large(shape);
  }
  return static_cast<std::uint64_t>(bytes);
}

Dims row_major_strides(std::span<const std::int64_t> shape) {
  element_count(shape);  // so that the products below can't overflow
  Dims strides(shape.size());
  std::int64_t stride = 1;
  for (std::size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<std::int64_t>(shape[d], 1);
  }
  return strides;
}

TensorView TensorView::dense(void* data, DType dtype, Dims shape, std::shared_ptr<void> owner) {
  TensorView view;
  view.data = static_cast<std::byte*>(data);
  view.dtype = dtype;
  view.strides = row_major_strides(shape);
  view.shape = std::move(shape);
  view.owner = std::move(owner);
  return view;
}

bool TensorView::is_contiguous() const noexcept {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return true;
  std::int64_t expected = 1;
  for (std::size_t d = shape.size(); d-- > 0;) {
    if (shape[d] == 1) continue;
    if (strides[d] != expected) return false;
    if (__builtin_mul_overflow(expected, shape[d], &expected)) return false;
  }
  return true;
}

bool Box::empty() const noexcept {
  return std::any_of(sizes.begin(), sizes.end(), [](std::int64_t size) { return size <= 0; });
}

std::optional<Box> intersect(const Box& a, const Box& b) {
  if (a.offsets.size() != b.offsets.size()) {
    throw Error(ErrorCode::kInternal, "intersect: boxes of " + std::to_string(a.offsets.size()) + " and " +
                                          std::to_string(b.offsets.size()) + " dimensions");
  }
  Box common;
  common.offsets.reserve(a.offsets.size());
  common.sizes.reserve(a.offsets.size());
  for (std::size_t d = 0; d < a.offsets.size(); ++d) {
    const std::int64_t begin = std::max(a.offsets[d], b.offsets[d]);
    const std::int64_t end = std::min(end_of(a, d), end_of(b, d));
    if (begin >= end) return std::nullopt;
    common.offsets.push_back(begin);
    common.sizes.push_back(end - begin);
  }
  return common;
}

TensorView narrow(const TensorView& view, const Box& box) {
  const std::size_t rank = view.shape.size();
  bool inside = box.offsets.size() == rank && box.sizes.size() == rank;
  for (std::size_t d = 0; inside && d < rank; ++d) {
    inside = box.offsets[d] >= 0 && box.sizes[d] >= 0 && box.offsets[d] <= view.shape[d] &&
             box.sizes[d] <= view.shape[d] - box.offsets[d];
  }
  if (!inside) {
    throw Error(ErrorCode::kInvalidArgument, "the box at " + to_text(box.offsets) + " of size " + to_text(box.sizes) +
                                                 " is not within the shape " + to_text(view.shape));
  }
  TensorView part = view;
  part.shape = box.sizes;
  if (!box.empty()) {  // an empty part may have no address
    std::int64_t elements = 0;
    for (std::size_t d = 0; d < rank; ++d) elements += box.offsets[d] * view.strides[d];
    part.data += elements * static_cast<std::int64_t>(item_size(view.dtype));
  }
  return part;
}

}  // namespace torchsnapshot
