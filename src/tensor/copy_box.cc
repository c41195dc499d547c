#include "tensor/copy_box.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "tensor/transpose.h"

namespace torchsnapshot {
namespace {

/// Leaves out dimensions with one step and joins those that follow each other without a gap on both sides.
void simplify(std::vector<CopyDim>& dims) {
  std::size_t kept = 0;
  for (const CopyDim& dim : dims) {
    if (dim.size == 1) continue;
    if (kept > 0) {
      CopyDim& outer = dims[kept - 1];
      if (outer.dst == dim.dst * dim.size && outer.src == dim.src * dim.size) {
        outer = {outer.size * dim.size, dim.dst, dim.src};
        continue;
      }
    }
    dims[kept++] = dim;
  }
  dims.resize(kept);
}

/// Copies units of a size known to the compiler.
template <std::size_t kSize>
class FixedUnit {
 public:
  void copy_row(std::byte* dst, const std::byte* src, const CopyDim& dim) const {
    for (std::int64_t i = 0; i < dim.size; ++i) copy(dst + i * dim.dst, src + i * dim.src);
  }

  /// A matrix whose rows (near_dst) are near in the destination and whose columns (near_src) are near in the source.
  /// Goes tile by tile within larger blocks: a tile touches both sides in runs of several cache lines, however far
  /// their rows are apart, and a block no more pages than the processor remembers.
  void copy_transposed(std::byte* dst, const std::byte* src, const CopyDim& near_dst, const CopyDim& near_src) const {
    for_each_tile(near_src.size, near_dst.size,
                  [&](std::int64_t j, std::int64_t i, std::size_t columns, std::size_t rows) {
                    copy_tile(dst + i * near_dst.dst + j * near_src.dst, src + i * near_dst.src + j * near_src.src,
                              near_dst, near_src, rows, columns);
                  });
  }

 private:
  static constexpr std::size_t kTile = kSize <= 4 ? 128 : 512 / kSize;
  static constexpr std::int64_t kBlock = 512;
  static constexpr std::size_t kPitch = kTile * kSize + 16;  // rows of the buffer fall on different cache sets

  static void copy(std::byte* dst, const std::byte* src) { std::memcpy(dst, src, kSize); }

  template <typename Body>
  static void for_each_tile(std::int64_t columns, std::int64_t rows, const Body& body) {
    constexpr auto kStep = static_cast<std::int64_t>(kTile);
    for (std::int64_t outer_j = 0; outer_j < columns; outer_j += kBlock) {
      const std::int64_t end_j = std::min(outer_j + kBlock, columns);
      for (std::int64_t outer_i = 0; outer_i < rows; outer_i += kBlock) {
        const std::int64_t end_i = std::min(outer_i + kBlock, rows);
        for (std::int64_t j = outer_j; j < end_j; j += kStep) {
          for (std::int64_t i = outer_i; i < end_i; i += kStep) {
            body(j, i, static_cast<std::size_t>(std::min(kStep, end_j - j)),
                 static_cast<std::size_t>(std::min(kStep, end_i - i)));
          }
        }
      }
    }
  }

  /// Through a buffer in the cache: rows of the source go in, columns come out.
  static void copy_tile(std::byte* dst, const std::byte* src, const CopyDim& near_dst, const CopyDim& near_src,
                        std::size_t rows, std::size_t columns) {
    alignas(64) std::array<std::byte, kTile * kPitch> buffer;
    const bool dense_out = near_dst.dst == static_cast<std::int64_t>(kSize);
    if (dense_out) prefetch(dst, near_src.dst, columns, rows * kSize);
    for (std::size_t r = 0; r < rows; ++r, src += near_dst.src) {
      std::byte* row = buffer.data() + r * kPitch;
      if (near_src.src == static_cast<std::int64_t>(kSize)) {
        std::memcpy(row, src, columns * kSize);
      } else {
        for (std::size_t c = 0; c < columns; ++c) {
          copy(row + c * kSize, src + static_cast<std::ptrdiff_t>(c) * near_src.src);
        }
      }
    }
    // Whole register blocks first, then what is left at the right and below.
    constexpr std::size_t kCount = kUnitsPerRegister<kSize>;
    const std::size_t block_columns = dense_out ? columns / kCount * kCount : 0;
    const std::size_t block_rows = dense_out ? rows / kCount * kCount : 0;
    const auto out = [&](std::size_t c, std::size_t r) {
      return dst + static_cast<std::ptrdiff_t>(c) * near_src.dst + static_cast<std::ptrdiff_t>(r) * near_dst.dst;
    };
    for (std::size_t c = 0; c < block_columns; c += kCount) {
      for (std::size_t r = 0; r < block_rows; r += kCount) {
        transpose_block<kSize>(out(c, r), near_src.dst, buffer.data() + r * kPitch + c * kSize, kPitch);
      }
    }
    for (std::size_t c = 0; c < columns; ++c) {
      for (std::size_t r = c < block_columns ? block_rows : 0; r < rows; ++r) {
        copy(out(c, r), buffer.data() + r * kPitch + c * kSize);
      }
    }
  }

  /// Asks for the lines that are about to be written: processors foresee no runs this short.
  static void prefetch(const std::byte* first, std::int64_t pitch, std::size_t count, std::size_t bytes) {
    for (std::size_t i = 0; i < count; ++i, first += pitch) {
      for (std::size_t at = 0; at < bytes; at += 64) __builtin_prefetch(first + at, 1);
    }
  }
};

/// Copies units of any size; they are long enough that no tiling is needed.
struct AnyUnit {
  std::size_t bytes;

  void copy_row(std::byte* dst, const std::byte* src, const CopyDim& dim) const {
    for (std::int64_t i = 0; i < dim.size; ++i) std::memcpy(dst + i * dim.dst, src + i * dim.src, bytes);
  }
  void copy_transposed(std::byte* dst, const std::byte* src, const CopyDim& near_dst, const CopyDim& near_src) const {
    for (std::int64_t j = 0; j < near_src.size; ++j) {
      copy_row(dst + j * near_src.dst, src + j * near_src.src, near_dst);
    }
  }
};

/// Calls body(dst, src) for every index of the outer dimensions.
template <typename Body>
void for_each_outer(std::byte* dst, const std::byte* src, const std::vector<CopyDim>& outer, const Body& body) {
  std::vector<std::int64_t> index(outer.size(), 0);
  while (true) {
    body(dst, src);
    std::size_t d = outer.size();
    while (true) {
      if (d == 0) return;
      --d;
      dst += outer[d].dst;
      src += outer[d].src;
      if (++index[d] < outer[d].size) break;
      dst -= outer[d].dst * outer[d].size;
      src -= outer[d].src * outer[d].size;
      index[d] = 0;
    }
  }
}

template <typename Unit>
void copy_units(std::byte* dst, const std::byte* src, const Unit& unit, std::vector<CopyDim> dims) {
  const auto by_dst = [](const CopyDim& a, const CopyDim& b) { return std::abs(a.dst) < std::abs(b.dst); };
  const auto by_src = [](const CopyDim& a, const CopyDim& b) { return std::abs(a.src) < std::abs(b.src); };
  if (dims.empty()) dims.push_back({1, 0, 0});
  const auto take = [&dims](auto at) {
    const CopyDim dim = *at;
    dims.erase(at);
    return dim;
  };
  // The innermost loops run over the dimensions that are nearest in memory, one for each side.
  const CopyDim near_dst = take(std::min_element(dims.begin(), dims.end(), by_dst));
  const auto at = std::min_element(dims.begin(), dims.end(), by_src);
  if (at == dims.end() || std::abs(near_dst.src) <= std::abs(at->src)) {
    for_each_outer(dst, src, dims, [&](std::byte* d, const std::byte* s) { unit.copy_row(d, s, near_dst); });
  } else {
    const CopyDim near_src = take(at);
    for_each_outer(dst, src, dims,
                   [&](std::byte* d, const std::byte* s) { unit.copy_transposed(d, s, near_dst, near_src); });
  }
}

}  // namespace

void copy_box(std::byte* dst, const std::byte* src, std::size_t item, std::vector<CopyDim> dims) {
  if (std::any_of(dims.begin(), dims.end(), [](const CopyDim& dim) { return dim.size <= 0; })) return;
  simplify(dims);
  // A dimension without gaps on both sides makes larger units of the elements. Repeated, since two dimensions
  // that a third one separates can be neighbours in memory.
  std::size_t unit = item;
  const auto is_dense = [&unit](const CopyDim& dim) {
    return dim.dst == static_cast<std::int64_t>(unit) && dim.src == dim.dst;
  };
  for (auto at = std::find_if(dims.begin(), dims.end(), is_dense); at != dims.end();
       at = std::find_if(dims.begin(), dims.end(), is_dense)) {
    unit *= static_cast<std::size_t>(at->size);
    dims.erase(at);
  }
  switch (unit) {
    case 1:
      return copy_units(dst, src, FixedUnit<1>{}, std::move(dims));
    case 2:
      return copy_units(dst, src, FixedUnit<2>{}, std::move(dims));
    case 4:
      return copy_units(dst, src, FixedUnit<4>{}, std::move(dims));
    case 8:
      return copy_units(dst, src, FixedUnit<8>{}, std::move(dims));
    case 16:
      return copy_units(dst, src, FixedUnit<16>{}, std::move(dims));
    default:
      return copy_units(dst, src, AnyUnit{unit}, std::move(dims));
  }
}

}  // namespace torchsnapshot
