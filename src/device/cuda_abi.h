// The part of the CUDA driver's interface that is used, so that building needs no CUDA: libcuda is loaded at run time
// (cuda_driver.h). cuda_abi_test.cc holds it against <cuda.h> where that is installed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace torchsnapshot::cuda {

using Result = int;
using Device = int;
using DevicePointer = std::uint64_t;
// Opaque: CUcontext, CUstream and CUevent.
using Context = void*;
using Stream = void*;
using Event = void*;

inline constexpr Result kSuccess = 0;
inline constexpr Result kOutOfMemory = 2;
inline constexpr Result kNoDevice = 100;
inline constexpr Result kInvalidDevice = 101;
inline constexpr Result kNotReady = 600;

inline constexpr unsigned kStreamNonBlocking = 1;
inline constexpr unsigned kEventBlockingSync = 1;
inline constexpr unsigned kEventDisableTiming = 2;
inline constexpr unsigned kHostAllocPortable = 1;

inline constexpr int kMemoryHost = 1;
inline constexpr int kMemoryDevice = 2;

/// CUDA_MEMCPY2D_v2
struct Copy2D {
  std::size_t source_x;
  std::size_t source_y;
  int source_type;
  const void* source_host;
  DevicePointer source_device;
  void* source_array;
  std::size_t source_pitch;
  std::size_t target_x;
  std::size_t target_y;
  int target_type;
  void* target_host;
  DevicePointer target_device;
  void* target_array;
  std::size_t target_pitch;
  std::size_t width_bytes;
  std::size_t height;
};

}  // namespace torchsnapshot::cuda
