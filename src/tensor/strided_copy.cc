#include "tensor/strided_copy.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "tensor/copy_box.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

enum class Direction { kToDense, kFromDense };

/// One copy between a window of the dense bytes of a tensor of shape `shape`, and the view of its part `region`.
/// A window of a dense tensor is at most 2 * rank + 1 boxes (part of a row, whole rows, part of a row, in every
/// dimension), each of which copy_box moves as a whole; elements cut by the ends of the window go bytewise.
template <Direction kDirection>
class WindowCopy {
 public:
  using DensePointer = std::conditional_t<kDirection == Direction::kToDense, std::byte*, const std::byte*>;

  WindowCopy(DensePointer dense, std::uint64_t begin, std::uint64_t size, std::span<const std::int64_t> shape,
             const Box& region, const TensorView& view)
      : dense_(dense),
        begin_(begin),
        end_(begin + size),
        shape_(shape),
        region_(region),
        view_(view),
        item_(item_size(view.dtype)),
        strides_(row_major_strides(shape)) {}

  void run() const {
    if (begin_ == end_ || region_.empty()) return;
    const std::uint64_t head = begin_ % item_;
    std::uint64_t first = begin_ / item_;
    const std::uint64_t last = end_ / item_;
    if (head != 0) {
      const std::uint64_t stop = std::min<std::uint64_t>(item_, head + (end_ - begin_));
      copy_part_of_element(first, head, stop);
      ++first;
    }
    if (first < last) copy_elements(0, to_signed(first), to_signed(last), 0, view_.data);
    if (first <= last && end_ % item_ != 0) copy_part_of_element(last, 0, end_ % item_);
  }

 private:
  static std::int64_t to_signed(std::uint64_t value) { return static_cast<std::int64_t>(value); }

  void move(std::uint64_t dense_byte, std::byte* strided, std::size_t size) const {
    if constexpr (kDirection == Direction::kToDense) {
      std::memcpy(dense_ + (dense_byte - begin_), strided, size);
    } else {
      std::memcpy(strided, dense_ + (dense_byte - begin_), size);
    }
  }

  /// Bytes [from, to) of one element.
  void copy_part_of_element(std::uint64_t element, std::uint64_t from, std::uint64_t to) const {
    std::int64_t rest = to_signed(element);
    std::int64_t place = 0;
    for (std::size_t d = 0; d < shape_.size(); ++d) {
      const std::int64_t i = rest / strides_[d] - region_.offsets[d];
      rest %= strides_[d];
      if (i < 0 || i >= region_.sizes[d]) return;
      place += i * view_.strides[d];
    }
    move(element * item_ + from, view_.data + place * to_signed(item_) + from, to - from);
  }

  /// Elements [first, last) of the sub-tensor of the dimensions from `d` on, which begins at element `base` of the
  /// dense tensor and at `strided` in the view.
  void copy_elements(std::size_t d, std::int64_t first, std::int64_t last, std::int64_t base,
                     std::byte* strided) const {
    if (d == shape_.size()) {
      move(static_cast<std::uint64_t>(base) * item_, strided, item_);
      return;
    }
    const std::int64_t inner = strides_[d];
    std::int64_t row = first / inner;
    const std::int64_t last_row = last / inner;
    const auto copy_part_of_row = [&](std::int64_t from, std::int64_t to) {
      const std::int64_t i = row - region_.offsets[d];
      if (i < 0 || i >= region_.sizes[d]) return;
      copy_elements(d + 1, from, to, base + row * inner, strided + i * view_.strides[d] * to_signed(item_));
    };
    if (first % inner != 0) {
      copy_part_of_row(first % inner, row == last_row ? last % inner : inner);
      if (row == last_row) return;
      ++row;
    }
    if (row < last_row) copy_rows(d, row, last_row, base, strided);
    if (last % inner != 0) {
      row = last_row;
      copy_part_of_row(0, last % inner);
    }
  }

  /// Whole rows [row, last_row) of dimension d, as far as they are in the region.
  void copy_rows(std::size_t d, std::int64_t row, std::int64_t last_row, std::int64_t base, std::byte* strided) const {
    row = std::max(row, region_.offsets[d]);
    last_row = std::min(last_row, region_.offsets[d] + region_.sizes[d]);
    if (row >= last_row) return;
    const std::int64_t item = to_signed(item_);
    strided += (row - region_.offsets[d]) * view_.strides[d] * item;
    base += row * strides_[d];
    for (std::size_t k = d + 1; k < shape_.size(); ++k) base += region_.offsets[k] * strides_[k];
    std::vector<CopyDim> dims;
    dims.reserve(shape_.size() - d);
    for (std::size_t k = d; k < shape_.size(); ++k) {
      const std::int64_t size = k == d ? last_row - row : region_.sizes[k];
      if constexpr (kDirection == Direction::kToDense) {
        dims.push_back({size, strides_[k] * item, view_.strides[k] * item});
      } else {
        dims.push_back({size, view_.strides[k] * item, strides_[k] * item});
      }
    }
    const std::int64_t dense_byte = base * item - to_signed(begin_);
    if constexpr (kDirection == Direction::kToDense) {
      copy_box(dense_ + dense_byte, strided, item_, std::move(dims));
    } else {
      copy_box(strided, dense_ + dense_byte, item_, std::move(dims));
    }
  }

  DensePointer dense_;
  std::uint64_t begin_;
  std::uint64_t end_;
  std::span<const std::int64_t> shape_;
  const Box& region_;
  const TensorView& view_;
  std::uint64_t item_;
  Dims strides_;
};

void require(bool condition, const char* what) {
  if (!condition) throw Error(ErrorCode::kInternal, what);
}

bool is_within(const Box& region, std::span<const std::int64_t> shape) {
  if (region.offsets.size() != shape.size() || region.sizes.size() != shape.size()) return false;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (region.offsets[d] < 0 || region.sizes[d] < 0 || region.sizes[d] > shape[d] ||
        region.offsets[d] > shape[d] - region.sizes[d]) {
      return false;
    }
  }
  return true;
}

bool is_whole(const Box& region, std::span<const std::int64_t> shape) {
  return std::equal(region.sizes.begin(), region.sizes.end(), shape.begin(), shape.end());
}

}  // namespace

void gather(const TensorView& view, std::uint64_t begin, std::span<std::byte> out) {
  require(view.device == DeviceType::kCpu, "gather: the tensor is not in CPU memory");
  const std::uint64_t total = view.nbytes();
  require(begin <= total && out.size() <= total - begin, "gather: the range reaches past the tensor");
  if (out.empty()) return;
  if (view.is_contiguous()) {
    std::memcpy(out.data(), view.data + begin, out.size());
    return;
  }
  const Box whole = Box::whole(view.shape);
  WindowCopy<Direction::kToDense>(out.data(), begin, out.size(), view.shape, whole, view).run();
}

void scatter(std::span<const std::byte> in, std::uint64_t begin, std::span<const std::int64_t> source_shape,
             const Box& region, const TensorView& view) {
  require(view.device == DeviceType::kCpu, "scatter: the tensor is not in CPU memory");
  const std::uint64_t total = dense_bytes(view.dtype, source_shape);
  require(begin <= total && in.size() <= total - begin, "scatter: the range reaches past the stored tensor");
  require(is_within(region, source_shape), "scatter: the region is not within the stored tensor");
  require(region.sizes == view.shape, "scatter: region and tensor have different sizes");
  if (in.empty() || region.empty()) return;
  if (is_whole(region, source_shape) && view.is_contiguous()) {
    std::memcpy(view.data + begin, in.data(), in.size());
    return;
  }
  WindowCopy<Direction::kFromDense>(in.data(), begin, in.size(), source_shape, region, view).run();
}

ByteRange enclosing_range(std::span<const std::int64_t> source_shape, const Box& region, DType dtype) {
  require(is_within(region, source_shape), "enclosing_range: the region is not within the tensor");
  require(!region.empty(), "enclosing_range: the region is empty");
  const Dims strides = row_major_strides(source_shape);
  std::int64_t first = 0;
  std::int64_t last = 0;
  for (std::size_t d = 0; d < strides.size(); ++d) {
    first += region.offsets[d] * strides[d];
    last += (region.offsets[d] + region.sizes[d] - 1) * strides[d];
  }
  const std::uint64_t item = item_size(dtype);
  return {static_cast<std::uint64_t>(first) * item, (static_cast<std::uint64_t>(last) + 1) * item};
}

bool is_unbroken(std::span<const std::int64_t> source_shape, const Box& region) {
  require(is_within(region, source_shape), "is_unbroken: the region is not within the tensor");
  if (region.empty()) return true;
  // Inner dimensions are spanned whole, then one of any size, and no further one that has more than one index.
  bool partial = false;
  for (std::size_t d = source_shape.size(); d-- > 0;) {
    if (partial && region.sizes[d] != 1) return false;
    partial = partial || region.sizes[d] != source_shape[d];
  }
  return true;
}

}  // namespace torchsnapshot
