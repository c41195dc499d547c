#include "tensor/strided_copy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using Buffer = std::vector<std::byte>;

constexpr std::byte kCanary{0xA5};
constexpr std::size_t kGuard = 64;

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}
  std::int64_t pick(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  bool chance(int percent) { return pick(1, 100) <= percent; }
  Buffer bytes(std::size_t size) {
    Buffer buffer(size);
    for (std::byte& byte : buffer) byte = static_cast<std::byte>(engine_() & 0xFF);
    return buffer;
  }
  DType dtype() {
    constexpr DType kDTypes[] = {DType::kInt8, DType::kBFloat16, DType::kFloat32, DType::kInt64, DType::kComplex128};
    return kDTypes[pick(0, 4)];
  }
  std::mt19937& engine() { return engine_; }

 private:
  std::mt19937 engine_;
};

/// Memory with a strided view into it, and canaries on both sides of all that the view can touch.
struct Strided {
  Buffer memory;
  TensorView view;
};

/// A random layout of `shape`: dimensions in any order in memory, with gaps, reversed, expanded.
Strided make_strided(Random& random, DType dtype, const Dims& shape, bool allow_expanded) {
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  std::vector<std::size_t> order(shape.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (random.chance(70)) std::shuffle(order.begin(), order.end(), random.engine());
  Dims strides(shape.size(), 0);
  std::int64_t extent = random.chance(20) ? 2 : 1;
  std::int64_t lowest = 0;
  std::int64_t highest = 0;
  for (auto at = order.rbegin(); at != order.rend(); ++at) {
    const std::int64_t size = shape[*at];
    if (allow_expanded && random.chance(15)) continue;  // stays 0
    const bool reversed = random.chance(20);
    strides[*at] = reversed ? -extent : extent;
    (reversed ? lowest : highest) += strides[*at] * std::max<std::int64_t>(size - 1, 0);
    extent *= std::max<std::int64_t>(size, 1);
    if (random.chance(20)) extent += random.pick(1, 3);
  }
  const std::size_t shift = random.chance(30) ? static_cast<std::size_t>(random.pick(1, 15)) : 0;  // unaligned
  Strided result;
  const auto span = static_cast<std::size_t>((highest - lowest + 1) * item);
  result.memory = Buffer(kGuard + shift + span + kGuard, kCanary);
  result.view = TensorView{};
  result.view.data = result.memory.data() + kGuard + shift + static_cast<std::size_t>(-lowest * item);
  result.view.dtype = dtype;
  result.view.shape = shape;
  result.view.strides = strides;
  return result;
}

Dims random_shape(Random& random) {
  const std::int64_t rank = random.pick(0, 5);
  Dims shape;
  std::int64_t room = 4096;
  for (std::int64_t d = 0; d < rank; ++d) {
    std::int64_t size = random.chance(20) ? 1 : random.pick(2, random.chance(25) ? 90 : 6);
    if (random.chance(3)) size = 0;
    size = std::min(size, room);
    room = size > 0 ? room / size : room;
    shape.push_back(size);
  }
  return shape;
}

/// Calls body(index) for every index of `shape`, in row-major order.
template <typename Body>
void for_each_index(const Dims& shape, const Body& body) {
  if (element_count(shape) == 0) return;
  Dims index(shape.size(), 0);
  while (true) {
    body(index);
    std::size_t d = shape.size();
    while (d > 0 && ++index[d - 1] == shape[d - 1]) index[--d] = 0;
    if (d == 0) return;
  }
}

std::byte* element(const TensorView& view, const Dims& index) {
  std::int64_t at = 0;
  for (std::size_t d = 0; d < index.size(); ++d) at += index[d] * view.strides[d];
  return view.data + at * static_cast<std::int64_t>(item_size(view.dtype));
}

Buffer dense_bytes_of(const TensorView& view) {
  Buffer bytes;
  const std::size_t item = item_size(view.dtype);
  for_each_index(view.shape, [&](const Dims& index) {
    const std::byte* at = element(view, index);
    bytes.insert(bytes.end(), at, at + item);
  });
  return bytes;
}

ByteRange random_range(Random& random, std::size_t total) {
  if (random.chance(30)) return {0, total};
  const auto a = static_cast<std::uint64_t>(random.pick(0, static_cast<std::int64_t>(total)));
  const auto b = static_cast<std::uint64_t>(random.pick(0, static_cast<std::int64_t>(total)));
  return {std::min(a, b), std::max(a, b)};
}

std::string describe(const TensorView& view, const ByteRange& range) {
  std::string text = std::string(dtype_name(view.dtype)) + " shape";
  for (const auto size : view.shape) text += " " + std::to_string(size);
  text += " strides";
  for (const auto stride : view.strides) text += " " + std::to_string(stride);
  return text + " range " + std::to_string(range.begin) + "-" + std::to_string(range.end);
}

TEST(Gather, RandomLayoutsAndRanges) {
  Random random(11);
  for (int i = 0; i < 3000; ++i) {
    Strided source = make_strided(random, random.dtype(), random_shape(random), true);
    source.memory = [&] {
      const auto offset = source.view.data - source.memory.data();
      Buffer filled = random.bytes(source.memory.size());
      source.view.data = filled.data() + offset;
      return filled;
    }();
    const Buffer before = source.memory;
    const Buffer expected = dense_bytes_of(source.view);
    ASSERT_EQ(expected.size(), source.view.nbytes());
    const ByteRange range = random_range(random, expected.size());
    SCOPED_TRACE(describe(source.view, range));
    Buffer out(kGuard + range.size() + kGuard, kCanary);
    gather(source.view, range.begin, std::span(out).subspan(kGuard, range.size()));
    Buffer wanted(out.size(), kCanary);
    if (range.size() > 0) std::memcpy(wanted.data() + kGuard, expected.data() + range.begin, range.size());
    ASSERT_TRUE(out == wanted);
    ASSERT_TRUE(source.memory == before);
  }
}

/// What scatter should do, element by element and byte by byte.
void scatter_reference(const Buffer& in, std::uint64_t begin, const Dims& source_shape, const Box& region,
                       const TensorView& view) {
  const Dims strides = row_major_strides(source_shape);
  const std::uint64_t item = item_size(view.dtype);
  for_each_index(region.sizes, [&](const Dims& index) {
    std::int64_t linear = 0;
    for (std::size_t d = 0; d < index.size(); ++d) linear += (region.offsets[d] + index[d]) * strides[d];
    for (std::uint64_t k = 0; k < item; ++k) {
      const std::uint64_t at = static_cast<std::uint64_t>(linear) * item + k;
      if (at >= begin && at < begin + in.size()) element(view, index)[k] = in[at - begin];
    }
  });
}

Box random_region(Random& random, const Dims& shape) {
  Box region = Box::whole(shape);
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (random.chance(40)) continue;
    region.offsets[d] = random.pick(0, shape[d]);
    region.sizes[d] = random.pick(random.chance(5) ? 0 : 1, shape[d] - region.offsets[d]);
    if (region.offsets[d] == shape[d] || region.sizes[d] < 0) region.offsets[d] = region.sizes[d] = 0;
  }
  return region;
}

TEST(Scatter, RandomRegionsLayoutsAndRanges) {
  Random random(12);
  int touched = 0;
  for (int i = 0; i < 4000; ++i) {
    const DType dtype = random.dtype();
    const Dims source_shape = random_shape(random);
    Box region = random_region(random, source_shape);
    Strided target = make_strided(random, dtype, region.sizes, false);
    const Buffer source = random.bytes(dense_bytes(dtype, source_shape));
    const ByteRange range = random_range(random, source.size());
    SCOPED_TRACE(describe(target.view, range));
    const Buffer in(source.begin() + static_cast<std::ptrdiff_t>(range.begin),
                    source.begin() + static_cast<std::ptrdiff_t>(range.end));
    const Buffer before = target.memory;
    const Buffer wanted = [&] {
      Strided copy = target;
      copy.view.data = copy.memory.data() + (target.view.data - target.memory.data());
      scatter_reference(in, range.begin, source_shape, region, copy.view);
      return copy.memory;
    }();
    scatter(in, range.begin, source_shape, region, target.view);
    ASSERT_TRUE(target.memory == wanted);
    touched += wanted == before ? 0 : 1;
  }
  EXPECT_GT(touched, 2000);
}

TEST(Scatter, PiecesInAnyOrderMakeTheWhole) {
  Random random(13);
  for (int i = 0; i < 500; ++i) {
    const DType dtype = random.dtype();
    const Dims shape = random_shape(random);
    Strided target = make_strided(random, dtype, shape, false);
    const Buffer source = random.bytes(target.view.nbytes());
    std::vector<std::uint64_t> cuts{0, source.size()};
    for (int k = 0; k < 5; ++k) {
      cuts.push_back(static_cast<std::uint64_t>(random.pick(0, static_cast<std::int64_t>(source.size()))));
    }
    std::sort(cuts.begin(), cuts.end());
    std::vector<std::size_t> order(cuts.size() - 1);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::shuffle(order.begin(), order.end(), random.engine());
    for (const std::size_t k : order) {
      scatter(std::span(source).subspan(cuts[k], cuts[k + 1] - cuts[k]), cuts[k], shape, Box::whole(shape),
              target.view);
    }
    ASSERT_TRUE(dense_bytes_of(target.view) == source);
  }
}

TEST(Scatter, ExpandedTargetTakesEqualElements) {
  Random random(14);
  for (int i = 0; i < 500; ++i) {
    Strided target = make_strided(random, random.dtype(), random_shape(random), true);
    // Elements that share memory are equal in the source.
    for_each_index(target.view.shape, [&](const Dims& index) {
      for (std::size_t k = 0; k < item_size(target.view.dtype); ++k) {
        element(target.view, index)[k] = static_cast<std::byte>(random.pick(0, 255));
      }
    });
    const Buffer source = dense_bytes_of(target.view);
    const Buffer expected = target.memory;
    for_each_index(target.view.shape, [&](const Dims& index) {
      std::fill_n(element(target.view, index), item_size(target.view.dtype), std::byte{0});
    });
    scatter(source, 0, target.view.shape, Box::whole(target.view.shape), target.view);
    ASSERT_TRUE(target.memory == expected);
  }
}

TEST(StridedCopy, LargeTransposesTakeEveryTile) {
  Random random(15);
  for (const DType dtype : {DType::kInt8, DType::kBFloat16, DType::kFloat32, DType::kInt64, DType::kComplex128}) {
    for (const Dims& shape : {Dims{257, 131}, Dims{64, 64}, Dims{3, 1000}, Dims{1000, 3}, Dims{5, 70, 67}}) {
      const std::size_t rank = shape.size();
      Buffer memory = random.bytes(dense_bytes(dtype, shape));
      TensorView view = TensorView::dense(memory.data(), dtype, shape);
      std::swap(view.shape[rank - 1], view.shape[rank - 2]);
      std::swap(view.strides[rank - 1], view.strides[rank - 2]);
      Buffer out(view.nbytes());
      gather(view, 0, out);
      EXPECT_TRUE(out == dense_bytes_of(view)) << describe(view, {});
      Buffer target(memory.size());
      TensorView into = view;
      into.data = target.data();
      scatter(out, 0, into.shape, Box::whole(into.shape), into);
      EXPECT_TRUE(target == memory) << describe(view, {});
    }
  }
}

TEST(EnclosingRange, AgainstBruteForce) {
  Random random(16);
  int unbroken = 0;
  for (int i = 0; i < 3000; ++i) {
    const DType dtype = random.dtype();
    const Dims shape = random_shape(random);
    const Box region = random_region(random, shape);
    if (region.empty()) {
      EXPECT_TRUE(is_unbroken(shape, region));
      continue;
    }
    const Dims strides = row_major_strides(shape);
    std::int64_t lowest = element_count(shape);
    std::int64_t highest = -1;
    for_each_index(region.sizes, [&](const Dims& index) {
      std::int64_t linear = 0;
      for (std::size_t d = 0; d < index.size(); ++d) linear += (region.offsets[d] + index[d]) * strides[d];
      lowest = std::min(lowest, linear);
      highest = std::max(highest, linear);
    });
    const std::uint64_t item = item_size(dtype);
    const ByteRange expected{static_cast<std::uint64_t>(lowest) * item, static_cast<std::uint64_t>(highest + 1) * item};
    EXPECT_EQ(enclosing_range(shape, region, dtype), expected);
    const bool dense = highest - lowest + 1 == element_count(region.sizes);
    EXPECT_EQ(is_unbroken(shape, region), dense);
    unbroken += dense ? 1 : 0;
  }
  EXPECT_GT(unbroken, 300);
}

TEST(StridedCopy, RefusesWhatIsOutside) {
  float data[6] = {};
  const TensorView view = TensorView::dense(data, DType::kFloat32, {2, 3});
  Buffer buffer(25);
  EXPECT_THROW(gather(view, 0, buffer), Error);
  EXPECT_THROW(gather(view, 25, std::span(buffer).first(0)), Error);
  EXPECT_NO_THROW(gather(view, 24, std::span(buffer).first(0)));
  EXPECT_THROW(scatter(buffer, 0, view.shape, Box::whole({2, 3}), view), Error);
  EXPECT_THROW(scatter(std::span(buffer).first(4), 0, Dims{2, 2}, Box::whole({2, 3}), view), Error);
  EXPECT_THROW(scatter(std::span(buffer).first(4), 0, Dims{4, 4}, Box::whole({2, 2}), view), Error);
  EXPECT_THROW(enclosing_range(Dims{2, 3}, {{0, 0}, {0, 3}}, DType::kFloat32), Error);
  EXPECT_THROW(is_unbroken(Dims{2, 3}, {{1, 0}, {2, 3}}), Error);
  TensorView elsewhere = view;
  elsewhere.device = DeviceType::kOther;
  EXPECT_THROW(gather(elsewhere, 0, std::span(buffer).first(4)), Error);
  EXPECT_THROW(scatter(std::span(buffer).first(4), 0, view.shape, Box::whole({2, 3}), elsewhere), Error);
}

}  // namespace
}  // namespace torchsnapshot
