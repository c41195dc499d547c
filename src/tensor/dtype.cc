#include <array>
#include <utility>

#include "torchsnapshot/tensor.h"

namespace torchsnapshot {
namespace {

struct Info {
  DType dtype;
  std::size_t size;
  std::string_view name;
};

// In the order of the enum, so that a dtype is its own index.
constexpr std::array kInfos = {
    Info{DType::kFloat64, 8, "torch.float64"},
    Info{DType::kFloat32, 4, "torch.float32"},
    Info{DType::kFloat16, 2, "torch.float16"},
    Info{DType::kBFloat16, 2, "torch.bfloat16"},
    Info{DType::kComplex128, 16, "torch.complex128"},
    Info{DType::kComplex64, 8, "torch.complex64"},
    Info{DType::kComplex32, 4, "torch.complex32"},
    Info{DType::kInt64, 8, "torch.int64"},
    Info{DType::kInt32, 4, "torch.int32"},
    Info{DType::kInt16, 2, "torch.int16"},
    Info{DType::kInt8, 1, "torch.int8"},
    Info{DType::kUInt64, 8, "torch.uint64"},
    Info{DType::kUInt32, 4, "torch.uint32"},
    Info{DType::kUInt16, 2, "torch.uint16"},
    Info{DType::kUInt8, 1, "torch.uint8"},
    Info{DType::kBool, 1, "torch.bool"},
    Info{DType::kFloat8E4M3FN, 1, "torch.float8_e4m3fn"},
    Info{DType::kFloat8E4M3FNUZ, 1, "torch.float8_e4m3fnuz"},
    Info{DType::kFloat8E5M2, 1, "torch.float8_e5m2"},
    Info{DType::kFloat8E5M2FNUZ, 1, "torch.float8_e5m2fnuz"},
    Info{DType::kFloat8E8M0FNU, 1, "torch.float8_e8m0fnu"},
    Info{DType::kFloat4E2M1FNx2, 1, "torch.float4_e2m1fn_x2"},
    Info{DType::kBits8, 1, "torch.bits8"},
    Info{DType::kBits16, 2, "torch.bits16"},
    Info{DType::kQInt8, 1, "torch.qint8"},
    Info{DType::kQUInt8, 1, "torch.quint8"},
    Info{DType::kQInt32, 4, "torch.qint32"},
};

constexpr bool in_enum_order() {
  for (std::size_t i = 0; i < kInfos.size(); ++i) {
    if (static_cast<std::size_t>(kInfos[i].dtype) != i) return false;
  }
  return true;
}
static_assert(in_enum_order());

const Info& info(DType dtype) noexcept {
  return kInfos[static_cast<std::size_t>(dtype)];
}

}  // namespace

std::size_t item_size(DType dtype) noexcept {
  return info(dtype).size;
}

std::string_view dtype_name(DType dtype) noexcept {
  return info(dtype).name;
}

std::optional<DType> dtype_from_name(std::string_view name) noexcept {
  for (const Info& entry : kInfos) {
    if (entry.name == name) return entry.dtype;
  }
  return std::nullopt;
}

bool is_quantized(DType dtype) noexcept {
  return dtype == DType::kQInt8 || dtype == DType::kQUInt8 || dtype == DType::kQInt32;
}

}  // namespace torchsnapshot
