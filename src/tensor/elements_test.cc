#include "tensor/elements.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace torchsnapshot {
namespace {

std::vector<double> floats_of(DType dtype, const std::vector<std::uint8_t>& bytes) {
  std::vector<double> values;
  for_each_element(dtype, std::as_bytes(std::span(bytes)), [&values](auto value) {
    if constexpr (std::is_same_v<decltype(value), std::complex<double>>) {
      values.push_back(value.real());
      values.push_back(value.imag());
    } else {
      values.push_back(static_cast<double>(value));
    }
  });
  return values;
}

TEST(Elements, HalfIsWhatTheStandardSays) {
  EXPECT_EQ(half_to_float(0x0000), 0.0F);
  EXPECT_TRUE(std::signbit(half_to_float(0x8000)));
  EXPECT_EQ(half_to_float(0x3C00), 1.0F);
  EXPECT_EQ(half_to_float(0xC000), -2.0F);
  EXPECT_EQ(half_to_float(0x7BFF), 65504.0F);
  EXPECT_EQ(half_to_float(0x0400), 0x1p-14F);
  EXPECT_EQ(half_to_float(0x0001), 0x1p-24F);
  EXPECT_EQ(half_to_float(0x7C00), std::numeric_limits<float>::infinity());
  EXPECT_EQ(half_to_float(0xFC00), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(half_to_float(0x7E00)));
  // Every number has its place between its neighbours.
  for (std::uint16_t bits = 0; bits < 0x7C00; ++bits) {
    ASSERT_LT(half_to_float(bits), half_to_float(static_cast<std::uint16_t>(bits + 1))) << bits;
  }
}

TEST(Elements, EightBitFloats) {
  EXPECT_EQ(float8_to_float(DType::kFloat8E4M3FN, 0x7E), 448.0F);
  EXPECT_EQ(float8_to_float(DType::kFloat8E4M3FN, 0x38), 1.0F);
  EXPECT_EQ(float8_to_float(DType::kFloat8E4M3FN, 0x01), 0x1p-9F);
  EXPECT_TRUE(std::isnan(float8_to_float(DType::kFloat8E4M3FN, 0x7F)));
  EXPECT_TRUE(std::isnan(float8_to_float(DType::kFloat8E4M3FN, 0xFF)));
  EXPECT_EQ(float8_to_float(DType::kFloat8E4M3FNUZ, 0x7F), 240.0F);
  EXPECT_EQ(float8_to_float(DType::kFloat8E4M3FNUZ, 0x40), 1.0F);
  EXPECT_TRUE(std::isnan(float8_to_float(DType::kFloat8E4M3FNUZ, 0x80)));
  EXPECT_EQ(float8_to_float(DType::kFloat8E5M2, 0x7B), 57344.0F);
  EXPECT_EQ(float8_to_float(DType::kFloat8E5M2, 0xFC), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(float8_to_float(DType::kFloat8E5M2, 0x7D)));
  EXPECT_EQ(float8_to_float(DType::kFloat8E5M2FNUZ, 0x7F), 57344.0F);
  EXPECT_TRUE(std::isnan(float8_to_float(DType::kFloat8E5M2FNUZ, 0x80)));
  EXPECT_EQ(float8_to_float(DType::kFloat8E8M0FNU, 0x7F), 1.0F);
  EXPECT_EQ(float8_to_float(DType::kFloat8E8M0FNU, 0x00), 0x1p-127F);
  EXPECT_TRUE(std::isnan(float8_to_float(DType::kFloat8E8M0FNU, 0xFF)));
}

TEST(Elements, EveryKindIsVisited) {
  EXPECT_EQ(floats_of(DType::kBFloat16, {0x80, 0x3F, 0x20, 0xC1}), (std::vector<double>{1, -10}));
  EXPECT_EQ(floats_of(DType::kComplex32, {0x00, 0x3C, 0x00, 0xC0}), (std::vector<double>{1, -2}));
  EXPECT_EQ(floats_of(DType::kInt16, {0xFF, 0xFF, 0x00, 0x80}), (std::vector<double>{-1, -32768}));
  EXPECT_EQ(floats_of(DType::kUInt16, {0xFF, 0xFF}), (std::vector<double>{65535}));
  EXPECT_EQ(floats_of(DType::kBool, {0, 1}), (std::vector<double>{0, 1}));
  EXPECT_TRUE(floats_of(DType::kBits8, {1, 2, 3}).empty());
  for (int i = 0; i <= static_cast<int>(DType::kQInt32); ++i) {
    const auto dtype = static_cast<DType>(i);
    const std::vector<std::uint8_t> bytes(item_size(dtype) * 3, 0);
    const std::size_t expected = element_kind(dtype) == ElementKind::kBits      ? 0
                                 : element_kind(dtype) == ElementKind::kComplex ? 6
                                                                                : 3;
    EXPECT_EQ(floats_of(dtype, bytes).size(), expected) << dtype_name(dtype);
  }
}

}  // namespace
}  // namespace torchsnapshot
