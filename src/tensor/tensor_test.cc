#include "torchsnapshot/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include "tensor/device_copy.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using testing::HasSubstr;

constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();

template <typename Body>
void expect_error(ErrorCode code, const std::string& text, const Body& body) {
  try {
    body();
    ADD_FAILURE() << "no error; expected one with: " << text;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(text));
  }
}

TEST(ElementCount, Products) {
  EXPECT_EQ(element_count(Dims{}), 1);
  EXPECT_EQ(element_count(Dims{7}), 7);
  EXPECT_EQ(element_count(Dims{2, 3, 4}), 24);
  EXPECT_EQ(element_count(Dims{5, 0, 4}), 0);
  EXPECT_EQ(element_count(Dims{kMax, 1}), kMax);
}

TEST(ElementCount, RefusesNegativeAndOverflowingShapes) {
  expect_error(ErrorCode::kInvalidArgument, "[2, -1] has a negative size", [] { element_count(Dims{2, -1}); });
  expect_error(ErrorCode::kInvalidArgument, "[0, -1]", [] { element_count(Dims{0, -1}); });
  expect_error(ErrorCode::kInvalidArgument, "too large", [] { element_count(Dims{kMax, 2}); });
  expect_error(ErrorCode::kInvalidArgument, "too large", [] { element_count(Dims{1LL << 32, 1LL << 31}); });
  // A size of 0 hides the overflow of the product, but not that of the strides.
  expect_error(ErrorCode::kInvalidArgument, "too large", [] { element_count(Dims{0, kMax, kMax}); });
}

TEST(DenseBytes, CountsBytesAndRefusesOverflow) {
  EXPECT_EQ(dense_bytes(DType::kComplex128, Dims{}), 16U);
  EXPECT_EQ(dense_bytes(DType::kFloat16, Dims{3, 5}), 30U);
  EXPECT_EQ(dense_bytes(DType::kInt8, Dims{kMax}), static_cast<std::uint64_t>(kMax));
  EXPECT_EQ(dense_bytes(DType::kFloat64, Dims{1LL << 59}), 1ULL << 62);
  expect_error(ErrorCode::kInvalidArgument, "too large", [] { dense_bytes(DType::kFloat64, Dims{1LL << 60}); });
  expect_error(ErrorCode::kInvalidArgument, "negative", [] { dense_bytes(DType::kFloat64, Dims{-4}); });
}

TEST(RowMajorStrides, Products) {
  EXPECT_EQ(row_major_strides(Dims{}), Dims{});
  EXPECT_EQ(row_major_strides(Dims{2, 3, 4}), (Dims{12, 4, 1}));
  EXPECT_EQ(row_major_strides(Dims{2, 0, 4}), (Dims{4, 4, 1}));
  EXPECT_THROW(row_major_strides(Dims{kMax, kMax, 0}), Error);
}

TEST(TensorView, Contiguity) {
  float data[24] = {};
  TensorView view = TensorView::dense(data, DType::kFloat32, {2, 3, 4});
  EXPECT_TRUE(view.is_contiguous());
  EXPECT_EQ(view.numel(), 24);
  EXPECT_EQ(view.nbytes(), 96U);
  view.strides = {1, 3, 4};
  EXPECT_FALSE(view.is_contiguous());
  view.strides = {12, 4, 2};
  EXPECT_FALSE(view.is_contiguous());
  view.strides = {12, 4, -1};
  EXPECT_FALSE(view.is_contiguous());
  view.strides = {0, 4, 1};
  EXPECT_FALSE(view.is_contiguous());
  view.shape = {1, 3, 4};  // the stride of a dimension of size 1 is of no account
  EXPECT_TRUE(view.is_contiguous());
  view.shape = {0, 3, 4};
  view.strides = {-5, 7, 9};
  EXPECT_TRUE(view.is_contiguous());
  EXPECT_TRUE(TensorView::dense(data, DType::kFloat32, {}).is_contiguous());
}

TEST(TensorView, DenseKeepsOwner) {
  auto memory = std::make_shared<std::vector<float>>(6);
  const TensorView view = TensorView::dense(memory->data(), DType::kFloat32, {2, 3}, memory);
  EXPECT_EQ(memory.use_count(), 2);
  EXPECT_EQ(narrow(view, {{1, 0}, {1, 2}}).owner, view.owner);
}

TEST(Box, Empty) {
  EXPECT_FALSE((Box{{}, {}}).empty());
  EXPECT_FALSE((Box{{3, 1}, {1, 2}}).empty());
  EXPECT_TRUE((Box{{3, 1}, {1, 0}}).empty());
  EXPECT_EQ(Box::whole({2, 3}), (Box{{0, 0}, {2, 3}}));
}

TEST(Box, IntersectAgainstBruteForce) {
  std::mt19937 random(1);
  const auto pick = [&random](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  int met = 0;
  for (int i = 0; i < 2000; ++i) {
    const int rank = pick(0, 3);
    Box a;
    Box b;
    for (int d = 0; d < rank; ++d) {
      a.offsets.push_back(pick(0, 5));
      a.sizes.push_back(pick(0, 5));
      b.offsets.push_back(pick(0, 5));
      b.sizes.push_back(pick(0, 5));
    }
    // Per dimension, the indices that both boxes have.
    Box expected;
    bool empty = false;
    for (std::size_t d = 0; d < a.offsets.size(); ++d) {
      std::vector<std::int64_t> common;
      for (std::int64_t x = 0; x < 12; ++x) {
        const auto in = [&](const Box& box) { return x >= box.offsets[d] && x < box.offsets[d] + box.sizes[d]; };
        if (in(a) && in(b)) common.push_back(x);
      }
      empty = empty || common.empty();
      expected.offsets.push_back(common.empty() ? 0 : common.front());
      expected.sizes.push_back(static_cast<std::int64_t>(common.size()));
    }
    const auto common = intersect(a, b);
    ASSERT_EQ(common.has_value(), !empty);
    if (common) {
      ++met;
      EXPECT_EQ(*common, expected);
    }
  }
  EXPECT_GT(met, 300);
}

TEST(Box, IntersectAtTheEdgeOfTheIndexSpace) {
  const Box huge{{kMax - 2}, {kMax}};
  EXPECT_EQ(*intersect(huge, huge), (Box{{kMax - 2}, {2}}));
  expect_error(ErrorCode::kInternal, "1 and 2 dimensions", [] { intersect({{0}, {1}}, {{0, 0}, {1, 1}}); });
}

TEST(Narrow, MovesDataAndKeepsStrides) {
  std::int16_t data[24] = {};
  const TensorView view = TensorView::dense(data, DType::kInt16, {2, 3, 4});
  const TensorView part = narrow(view, {{1, 1, 2}, {1, 2, 1}});
  EXPECT_EQ(part.data, reinterpret_cast<std::byte*>(data + 12 + 4 + 2));
  EXPECT_EQ(part.shape, (Dims{1, 2, 1}));
  EXPECT_EQ(part.strides, view.strides);
  TensorView flipped = view;
  flipped.data = reinterpret_cast<std::byte*>(data + 23);
  flipped.strides = {-12, -4, -1};
  EXPECT_EQ(narrow(flipped, {{1, 2, 3}, {1, 1, 1}}).data, reinterpret_cast<std::byte*>(data));
}

TEST(Narrow, EmptyPartsAndNullData) {
  const TensorView none = TensorView::dense(nullptr, DType::kFloat32, {4, 0});
  EXPECT_EQ(narrow(none, {{2, 0}, {2, 0}}).shape, (Dims{2, 0}));
  EXPECT_EQ(narrow(none, {{4, 0}, {0, 0}}).data, nullptr);
}

TEST(Narrow, RefusesBoxesOutside) {
  float data[6] = {};
  const TensorView view = TensorView::dense(data, DType::kFloat32, {2, 3});
  for (const Box& box : {Box{{0, 0}, {3, 1}}, Box{{1, 0}, {2, 1}}, Box{{-1, 0}, {1, 1}}, Box{{0, 0}, {1, -1}},
                         Box{{0}, {1}}, Box{{0, 4}, {1, 0}}, Box{{0, 1}, {1, kMax}}}) {
    expect_error(ErrorCode::kInvalidArgument, "is not within the shape [2, 3]", [&] { narrow(view, box); });
  }
}

class FakeCopier : public DeviceCopier {
 public:
  void to_host(const TensorView&, std::uint64_t, std::span<std::byte>) override { ++calls; }
  void to_device(std::span<const std::byte>, std::uint64_t, const TensorView&) override { ++calls; }
  int calls = 0;
};

TEST(DeviceCopier, IsWhatWasRegistered) {
  expect_error(ErrorCode::kUnsupported, "move the tensor to the CPU", [] { device_copier(); });
  auto copier = std::make_shared<FakeCopier>();
  set_device_copier(copier);
  device_copier().to_host({}, 0, {});
  EXPECT_EQ(copier->calls, 1);
  set_device_copier(nullptr);
  EXPECT_THROW(device_copier(), Error);
  EXPECT_EQ(copier.use_count(), 1);
}

}  // namespace
}  // namespace torchsnapshot
