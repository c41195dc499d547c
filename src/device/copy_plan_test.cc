#include "device/copy_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "tensor/strided_copy.h"

namespace torchsnapshot {
namespace {

/// A strided view of `memory`, which it fills with a pattern: dimensions permuted, skipped over, of size 1 or 0, or
/// expanded.
TensorView random_view(std::mt19937& random, std::vector<std::byte>& memory) {
  const auto pick = [&](int least, int most) {
    return static_cast<std::int64_t>(std::uniform_int_distribution<int>(least, most)(random));
  };
  const auto rank = static_cast<std::size_t>(pick(0, 4));
  TensorView view;
  const DType dtypes[] = {DType::kUInt8, DType::kFloat16, DType::kFloat32, DType::kComplex128};
  view.dtype = dtypes[pick(0, 3)];
  view.shape.resize(rank);
  view.strides.resize(rank);
  std::vector<std::size_t> order(rank);
  std::iota(order.begin(), order.end(), 0U);
  if (pick(0, 1) == 0) {
    std::reverse(order.begin(), order.end());  // row-major
  } else {
    std::shuffle(order.begin(), order.end(), random);
  }
  std::int64_t step = pick(0, 3) == 0 ? 2 : 1;
  for (const std::size_t d : order) {
    view.shape[d] = pick(0, 15) == 0 ? pick(0, 1) : pick(2, 7);
    view.strides[d] = step;
    if (pick(0, 9) == 0) {
      view.strides[d] = 0;  // expanded
    } else {
      step *= std::max<std::int64_t>(1, view.shape[d] + (pick(0, 2) == 0 ? pick(0, 3) : 0));
    }
  }
  memory.resize(static_cast<std::size_t>(step + 1) * item_size(view.dtype));
  for (auto& byte : memory) byte = static_cast<std::byte>(pick(0, 255));
  view.data = memory.data();
  return view;
}

TEST(CopyPlan, IsWhatGatherDoes) {
  std::mt19937 random(1);
  for (int round = 0; round < 600; ++round) {
    std::vector<std::byte> memory;
    const TensorView view = random_view(random, memory);
    const std::uint64_t item = item_size(view.dtype);
    const std::uint64_t total = view.nbytes();
    std::uint64_t begin = std::uniform_int_distribution<std::uint64_t>(0, total)(random) / item * item;
    std::uint64_t end = std::uniform_int_distribution<std::uint64_t>(0, total)(random) / item * item;
    if (begin > end) std::swap(begin, end);
    if (round % 3 == 0) {
      begin = 0;
      end = total;
    }
    std::vector<std::byte> expected(end - begin);
    gather(view, begin, expected);
    std::vector<std::byte> found(end - begin);
    std::uint64_t at = 0;
    const auto rects = plan_copy(view, begin, end - begin);
    for (const CopyRect& rect : rects) {
      ASSERT_EQ(rect.host, at) << "in order, without a gap";
      ASSERT_GT(rect.width, 0U);
      ASSERT_TRUE(rect.rows == 1 || rect.pitch >= rect.width);
      for (std::uint64_t row = 0; row < rect.rows; ++row, at += rect.width) {
        std::memcpy(found.data() + at, view.data + rect.device + row * rect.pitch, rect.width);
      }
    }
    ASSERT_EQ(at, end - begin);
    ASSERT_EQ(found, expected) << "round " << round;
    if (view.is_contiguous() && end > begin) {
      ASSERT_EQ(rects.size(), 1U);
    }
  }
}

TEST(CopyPlan, RowsOfAMatrixAreOneCopy) {
  std::vector<float> memory(100 * 64);
  TensorView view = TensorView::dense(memory.data(), DType::kFloat32, {100, 64});
  view.shape[1] = 48;  // its left part
  const auto rects = plan_copy(view, 0, view.nbytes());
  ASSERT_EQ(rects.size(), 1U);
  EXPECT_EQ(rects[0].width, 48U * 4);
  EXPECT_EQ(rects[0].pitch, 64U * 4);
  EXPECT_EQ(rects[0].rows, 100U);
  // From the middle of a row to the middle of another: a part, whole rows, a part.
  EXPECT_EQ(plan_copy(view, 40, 48 * 4 * 10).size(), 3U);
}

TEST(CopyPlan, KnowsLongRows) {
  std::vector<float> memory(1000 * 100);
  TensorView view = TensorView::dense(memory.data(), DType::kFloat32, {1000, 100});
  EXPECT_TRUE(lies_in_long_rows(view));
  view.shape[1] = 64;
  EXPECT_TRUE(lies_in_long_rows(view));
  view.shape[1] = 63;
  EXPECT_FALSE(lies_in_long_rows(view));
  std::swap(view.shape[0], view.shape[1]);
  std::swap(view.strides[0], view.strides[1]);
  EXPECT_FALSE(lies_in_long_rows(view));
  EXPECT_TRUE(lies_in_long_rows(TensorView::dense(memory.data(), DType::kFloat32, {3})));
  EXPECT_TRUE(lies_in_long_rows(TensorView::dense(memory.data(), DType::kFloat32, {})));
  EXPECT_TRUE(lies_in_long_rows(TensorView::dense(memory.data(), DType::kFloat32, {0, 5})));
}

}  // namespace
}  // namespace torchsnapshot
