// The seam to memory that the CPU can't address. A face registers the one implementation it has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "torchsnapshot/tensor.h"

namespace torchsnapshot {

/// Moves elements between a tensor on a device and dense host memory. Thread-safe; blocking.
class DeviceCopier {
 public:
  virtual ~DeviceCopier() = default;
  /// As gather(), for a view with device != kCpu. `begin` and out.size() are multiples of the element size.
  virtual void to_host(const TensorView& view, std::uint64_t begin, std::span<std::byte> out) = 0;
  /// Writes dense row-major bytes from byte `begin` on of `view`; multiples of the element size.
  virtual void to_device(std::span<const std::byte> in, std::uint64_t begin, const TensorView& view) = 0;
};

/// Sets the process's copier (null: none). Not while a take or restore runs.
void set_device_copier(std::shared_ptr<DeviceCopier> copier);
/// The copier. Throws Error(kUnsupported) when none is set.
DeviceCopier& device_copier();

}  // namespace torchsnapshot
