#include "device/copy_plan.h"

#include <algorithm>

namespace torchsnapshot {
namespace {

constexpr std::uint64_t kMaxPitch = (1ULL << 31) - 1;  ///< of the devices
constexpr std::uint64_t kLongRow = 256;

struct Dim {
  std::int64_t size;
  std::int64_t stride;  ///< in elements
};

/// The view as rows: `outer` dimensions of planes of `rows` rows of `length` elements, one after the other.
struct Rows {
  std::vector<Dim> outer;
  Dim rows{1, 0};
  std::int64_t length = 1;

  explicit Rows(const TensorView& view) {
    for (std::size_t d = 0; d < view.shape.size(); ++d) {
      const Dim dim{view.shape[d], view.strides[d]};
      if (dim.size == 1) continue;
      if (!outer.empty() && outer.back().stride == dim.size * dim.stride) {
        outer.back() = {outer.back().size * dim.size, dim.stride};
      } else {
        outer.push_back(dim);
      }
    }
    if (!outer.empty() && outer.back().stride == 1) {
      length = outer.back().size;
      outer.pop_back();
    }
    if (!outer.empty()) {
      rows = outer.back();
      outer.pop_back();
    }
  }

  /// Where a row begins, in elements.
  [[nodiscard]] std::int64_t place(std::int64_t row) const noexcept {
    std::int64_t place = row % rows.size * rows.stride;
    std::int64_t rest = row / rows.size;
    for (std::size_t d = outer.size(); d-- > 0;) {
      place += rest % outer[d].size * outer[d].stride;
      rest /= outer[d].size;
    }
    return place;
  }
};

}  // namespace

std::vector<CopyRect> plan_copy(const TensorView& view, std::uint64_t begin, std::uint64_t size) {
  std::vector<CopyRect> rects;
  if (size == 0) return rects;
  const Rows rows(view);
  const auto item = static_cast<std::int64_t>(item_size(view.dtype));
  const std::int64_t first = static_cast<std::int64_t>(begin) / item;
  const std::int64_t last = static_cast<std::int64_t>(begin + size) / item;
  const auto bytes = [item](std::int64_t elements) { return static_cast<std::uint64_t>(elements * item); };
  for (std::int64_t at = first; at < last;) {
    const std::int64_t row = at / rows.length;
    const std::int64_t column = at % rows.length;
    CopyRect rect{.device = (rows.place(row) + column) * item, .host = bytes(at - first), .pitch = 0};
    std::int64_t count = 1;
    std::int64_t width = std::min(rows.length - column, last - at);
    if (width == rows.length) {
      // As many whole rows of this plane as there are, if the next one lies behind this one.
      const bool has_pitch = rows.rows.stride >= rows.length && bytes(rows.rows.stride) <= kMaxPitch;
      if (has_pitch) count = std::min(rows.rows.size - row % rows.rows.size, (last - at) / rows.length);
      if (count > 1) rect.pitch = bytes(rows.rows.stride);
    }
    rect.width = bytes(width);
    rect.rows = static_cast<std::uint64_t>(count);
    rects.push_back(rect);
    at += count * width;
  }
  return rects;
}

bool lies_in_long_rows(const TensorView& view) {
  const std::uint64_t total = view.nbytes();
  const std::uint64_t row = static_cast<std::uint64_t>(Rows(view).length) * item_size(view.dtype);
  return total == 0 || row >= std::min(kLongRow, total);
}

}  // namespace torchsnapshot
