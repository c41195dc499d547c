// Names of torch's storage classes, as pickles of tensors have them.
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>
#include <string_view>
#include <utility>

namespace torchsnapshot::libtorch {

inline constexpr std::pair<std::string_view, at::ScalarType> kStorageClasses[] = {
    {"DoubleStorage", at::kDouble},
    {"FloatStorage", at::kFloat},
    {"HalfStorage", at::kHalf},
    {"BFloat16Storage", at::kBFloat16},
    {"LongStorage", at::kLong},
    {"IntStorage", at::kInt},
    {"ShortStorage", at::kShort},
    {"CharStorage", at::kChar},
    {"ByteStorage", at::kByte},
    {"BoolStorage", at::kBool},
    {"ComplexDoubleStorage", at::kComplexDouble},
    {"ComplexFloatStorage", at::kComplexFloat},
};

/// Empty for a type without a class of its own.
constexpr std::string_view storage_class(at::ScalarType type) noexcept {
  for (const auto& [name, known] : kStorageClasses) {
    if (known == type) return name;
  }
  return {};
}

constexpr std::optional<at::ScalarType> storage_type(std::string_view name) noexcept {
  for (const auto& [known, type] : kStorageClasses) {
    if (known == name) return type;
  }
  return std::nullopt;
}

}  // namespace torchsnapshot::libtorch
