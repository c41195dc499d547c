// Our declarations of the driver's interface against NVIDIA's own header.
#include "device/cuda_abi.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <type_traits>

#include "device/cuda_driver.h"

#if __has_include(<cuda.h>)
#include <cuda.h>

namespace torchsnapshot {
namespace {

TEST(CudaAbi, IsThatOfTheHeader) {
  const auto same = [](auto ours, auto theirs) { EXPECT_EQ(static_cast<long>(ours), static_cast<long>(theirs)); };
  same(cuda::kSuccess, CUDA_SUCCESS);
  same(cuda::kOutOfMemory, CUDA_ERROR_OUT_OF_MEMORY);
  same(cuda::kNoDevice, CUDA_ERROR_NO_DEVICE);
  same(cuda::kInvalidDevice, CUDA_ERROR_INVALID_DEVICE);
  same(cuda::kStreamNonBlocking, CU_STREAM_NON_BLOCKING);
  same(cuda::kEventBlockingSync, CU_EVENT_BLOCKING_SYNC);
  same(cuda::kEventDisableTiming, CU_EVENT_DISABLE_TIMING);
  same(cuda::kHostAllocPortable, CU_MEMHOSTALLOC_PORTABLE);
  same(cuda::kMemoryHost, CU_MEMORYTYPE_HOST);
  same(cuda::kMemoryDevice, CU_MEMORYTYPE_DEVICE);
  same(sizeof(cuda::Result), sizeof(CUresult));
  same(sizeof(cuda::Device), sizeof(CUdevice));
  same(sizeof(cuda::DevicePointer), sizeof(CUdeviceptr));
  same(sizeof(cuda::Context), sizeof(CUcontext));
  same(sizeof(cuda::Stream), sizeof(CUstream));
  same(sizeof(cuda::Event), sizeof(CUevent));
  same(sizeof(cuda::Copy2D), sizeof(CUDA_MEMCPY2D));
  same(offsetof(cuda::Copy2D, source_x), offsetof(CUDA_MEMCPY2D, srcXInBytes));
  same(offsetof(cuda::Copy2D, source_y), offsetof(CUDA_MEMCPY2D, srcY));
  same(offsetof(cuda::Copy2D, source_type), offsetof(CUDA_MEMCPY2D, srcMemoryType));
  same(offsetof(cuda::Copy2D, source_host), offsetof(CUDA_MEMCPY2D, srcHost));
  same(offsetof(cuda::Copy2D, source_device), offsetof(CUDA_MEMCPY2D, srcDevice));
  same(offsetof(cuda::Copy2D, source_array), offsetof(CUDA_MEMCPY2D, srcArray));
  same(offsetof(cuda::Copy2D, source_pitch), offsetof(CUDA_MEMCPY2D, srcPitch));
  same(offsetof(cuda::Copy2D, target_x), offsetof(CUDA_MEMCPY2D, dstXInBytes));
  same(offsetof(cuda::Copy2D, target_y), offsetof(CUDA_MEMCPY2D, dstY));
  same(offsetof(cuda::Copy2D, target_type), offsetof(CUDA_MEMCPY2D, dstMemoryType));
  same(offsetof(cuda::Copy2D, target_host), offsetof(CUDA_MEMCPY2D, dstHost));
  same(offsetof(cuda::Copy2D, target_device), offsetof(CUDA_MEMCPY2D, dstDevice));
  same(offsetof(cuda::Copy2D, target_array), offsetof(CUDA_MEMCPY2D, dstArray));
  same(offsetof(cuda::Copy2D, target_pitch), offsetof(CUDA_MEMCPY2D, dstPitch));
  same(offsetof(cuda::Copy2D, width_bytes), offsetof(CUDA_MEMCPY2D, WidthInBytes));
  same(offsetof(cuda::Copy2D, height), offsetof(CUDA_MEMCPY2D, Height));
}

/// A type of the header as ours: handles are pointers, enumerations and devices int.
template <typename T>
struct Plain {
  using type = std::conditional_t<std::is_enum_v<T>, int, T>;
};
template <>
struct Plain<CUcontext> {
  using type = void*;
};
template <>
struct Plain<CUstream> {
  using type = void*;
};
template <>
struct Plain<CUevent> {
  using type = void*;
};
template <>
struct Plain<CUdeviceptr> {
  using type = cuda::DevicePointer;
};
template <>
struct Plain<const CUDA_MEMCPY2D*> {
  using type = const cuda::Copy2D*;
};
template <typename T>
struct Plain<T*> {
  using type = std::conditional_t<std::is_same_v<T, CUDA_MEMCPY2D>, cuda::Copy2D*, typename Plain<T>::type*>;
};

template <typename Theirs>
struct Signature;
template <typename R, typename... Arguments>
struct Signature<R(Arguments...)> {
  using type = typename Plain<R>::type (*)(typename Plain<Arguments>::type...);
};

template <typename Ours, typename Theirs>
constexpr bool kSame = std::is_same_v<Ours, typename Signature<Theirs>::type>;

// The names are macros of the newest version in the header: cuStreamDestroy is cuStreamDestroy_v2.
static_assert(kSame<decltype(CudaDriver::init), decltype(cuInit)>);
static_assert(kSame<decltype(CudaDriver::get_error_name), decltype(cuGetErrorName)>);
static_assert(kSame<decltype(CudaDriver::get_error_string), decltype(cuGetErrorString)>);
static_assert(kSame<decltype(CudaDriver::device_get), decltype(cuDeviceGet)>);
static_assert(kSame<decltype(CudaDriver::primary_context_retain), decltype(cuDevicePrimaryCtxRetain)>);
static_assert(kSame<decltype(CudaDriver::primary_context_release), decltype(cuDevicePrimaryCtxRelease)>);
static_assert(kSame<decltype(CudaDriver::context_push), decltype(cuCtxPushCurrent)>);
static_assert(kSame<decltype(CudaDriver::context_pop), decltype(cuCtxPopCurrent)>);
static_assert(kSame<decltype(CudaDriver::stream_create), decltype(cuStreamCreate)>);
static_assert(kSame<decltype(CudaDriver::stream_destroy), decltype(cuStreamDestroy)>);
static_assert(kSame<decltype(CudaDriver::stream_wait_event), decltype(cuStreamWaitEvent)>);
static_assert(kSame<decltype(CudaDriver::stream_synchronize), decltype(cuStreamSynchronize)>);
static_assert(kSame<decltype(CudaDriver::event_create), decltype(cuEventCreate)>);
static_assert(kSame<decltype(CudaDriver::event_destroy), decltype(cuEventDestroy)>);
static_assert(kSame<decltype(CudaDriver::event_record), decltype(cuEventRecord)>);
static_assert(kSame<decltype(CudaDriver::event_synchronize), decltype(cuEventSynchronize)>);
static_assert(kSame<decltype(CudaDriver::host_alloc), decltype(cuMemHostAlloc)>);
static_assert(kSame<decltype(CudaDriver::host_free), decltype(cuMemFreeHost)>);
static_assert(kSame<decltype(CudaDriver::copy_to_host), decltype(cuMemcpyDtoHAsync)>);
static_assert(kSame<decltype(CudaDriver::copy_to_device), decltype(cuMemcpyHtoDAsync)>);
static_assert(kSame<decltype(CudaDriver::copy_2d), decltype(cuMemcpy2DAsync)>);

// … and so are the names that are loaded.
#define TORCHSNAPSHOT_TEXT_OF(name) #name
#define TORCHSNAPSHOT_NAME(name) TORCHSNAPSHOT_TEXT_OF(name)
TEST(CudaAbi, LoadsTheVersionsOfTheHeader) {
  EXPECT_STREQ(TORCHSNAPSHOT_NAME(cuDevicePrimaryCtxRelease), "cuDevicePrimaryCtxRelease_v2");
  EXPECT_STREQ(TORCHSNAPSHOT_NAME(cuCtxPushCurrent), "cuCtxPushCurrent_v2");
  EXPECT_STREQ(TORCHSNAPSHOT_NAME(cuCtxPopCurrent), "cuCtxPopCurrent_v2");
  EXPECT_STREQ(TORCHSNAPSHOT_NAME(cuStreamDestroy), "cuStreamDestroy_v2");
  EXPECT_STREQ(TORCHSNAPSHOT_NAME(cuEventDestroy), "cuEventDestroy_v2");
  EXPECT_STREQ(TORCHSNAPSHOT_NAME(cuMemcpyDtoHAsync), "cuMemcpyDtoHAsync_v2");
  EXPECT_STREQ(TORCHSNAPSHOT_NAME(cuMemcpyHtoDAsync), "cuMemcpyHtoDAsync_v2");
  EXPECT_STREQ(TORCHSNAPSHOT_NAME(cuMemcpy2DAsync), "cuMemcpy2DAsync_v2");
  EXPECT_STREQ(TORCHSNAPSHOT_NAME(cuStreamCreate), "cuStreamCreate");
  EXPECT_STREQ(TORCHSNAPSHOT_NAME(cuEventRecord), "cuEventRecord");
  EXPECT_STREQ(TORCHSNAPSHOT_NAME(cuMemHostAlloc), "cuMemHostAlloc");
}

}  // namespace
}  // namespace torchsnapshot
#else
TEST(CudaAbi, IsThatOfTheHeader) {
  GTEST_SKIP() << "no <cuda.h> to compare with: it comes with the CUDA toolkit";
}
#endif
