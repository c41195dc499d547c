#include <gtest/gtest.h>

#include <set>
#include <string>

#include "torchsnapshot/tensor.h"

namespace torchsnapshot {
namespace {

constexpr auto kLast = static_cast<unsigned>(DType::kQInt32);

TEST(DType, NamesReadBackAndDiffer) {
  std::set<std::string_view> names;
  for (unsigned i = 0; i <= kLast; ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_TRUE(names.insert(dtype_name(dtype)).second) << dtype_name(dtype);
    ASSERT_TRUE(dtype_from_name(dtype_name(dtype)).has_value());
    EXPECT_EQ(*dtype_from_name(dtype_name(dtype)), dtype);
    EXPECT_EQ(dtype_name(dtype).substr(0, 6), "torch.");
  }
}

TEST(DType, UnknownNames) {
  for (const char* name : {"", "torch.", "float32", "torch.float", "torch.float32 ", "TORCH.FLOAT32", "torch.str"}) {
    EXPECT_FALSE(dtype_from_name(name).has_value()) << name;
  }
}

TEST(DType, SizesAsInTorch) {
  const std::pair<const char*, std::size_t> expected[] = {
      {"torch.float64", 8},        {"torch.float32", 4},
      {"torch.float16", 2},        {"torch.bfloat16", 2},
      {"torch.complex128", 16},    {"torch.complex64", 8},
      {"torch.complex32", 4},      {"torch.int64", 8},
      {"torch.int32", 4},          {"torch.int16", 2},
      {"torch.int8", 1},           {"torch.uint64", 8},
      {"torch.uint32", 4},         {"torch.uint16", 2},
      {"torch.uint8", 1},          {"torch.bool", 1},
      {"torch.float8_e4m3fn", 1},  {"torch.float8_e4m3fnuz", 1},
      {"torch.float8_e5m2", 1},    {"torch.float8_e5m2fnuz", 1},
      {"torch.float8_e8m0fnu", 1}, {"torch.bits8", 1},
      {"torch.bits16", 2},         {"torch.float4_e2m1fn_x2", 1},
      {"torch.qint8", 1},          {"torch.quint8", 1},
      {"torch.qint32", 4},
  };
  EXPECT_EQ(std::size(expected), kLast + 1);
  for (const auto& [name, size] : expected) {
    const auto dtype = dtype_from_name(name);
    ASSERT_TRUE(dtype.has_value()) << name;
    EXPECT_EQ(item_size(*dtype), size) << name;
    EXPECT_EQ(is_quantized(*dtype), std::string(name).find(".q") != std::string::npos) << name;
  }
}

}  // namespace
}  // namespace torchsnapshot
