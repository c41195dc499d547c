#include "device/cuda_driver.h"

#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "core/dynamic_library.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr const char* kRemedy =
    "tensors on CUDA devices need NVIDIA's driver (libcuda.so.1): install it, or set TORCHSNAPSHOT_LIBCUDA to the "
    "file, or to 'off' to have torch make the copies";

std::string_view chosen_library() {
  const char* const chosen = std::getenv("TORCHSNAPSHOT_LIBCUDA");
  return chosen == nullptr ? "" : chosen;
}

ErrorCode code_of(cuda::Result result) {
  switch (result) {
    case cuda::kOutOfMemory:
      return ErrorCode::kNoSpace;
    case cuda::kNoDevice:
    case cuda::kInvalidDevice:
      return ErrorCode::kUnsupported;
    default:
      return ErrorCode::kIo;
  }
}

}  // namespace

CudaDriver load_cuda_driver() {
  const std::string_view chosen = chosen_library();
  const std::vector<std::string> names = {chosen.empty() ? std::string("libcuda.so.1") : std::string(chosen)};
  const DynamicLibrary library(names, kRemedy);
  CudaDriver driver{};
  library.find("cuInit", driver.init);
  library.find("cuGetErrorName", driver.get_error_name);
  library.find("cuGetErrorString", driver.get_error_string);
  library.find("cuDeviceGet", driver.device_get);
  library.find("cuDevicePrimaryCtxRetain", driver.primary_context_retain);
  library.find("cuDevicePrimaryCtxRelease_v2", driver.primary_context_release);
  library.find("cuCtxPushCurrent_v2", driver.context_push);
  library.find("cuCtxPopCurrent_v2", driver.context_pop);
  library.find("cuStreamCreate", driver.stream_create);
  library.find("cuStreamDestroy_v2", driver.stream_destroy);
  library.find("cuStreamWaitEvent", driver.stream_wait_event);
  library.find("cuStreamSynchronize", driver.stream_synchronize);
  library.find("cuEventCreate", driver.event_create);
  library.find("cuEventDestroy_v2", driver.event_destroy);
  library.find("cuEventRecord", driver.event_record);
  library.find("cuEventSynchronize", driver.event_synchronize);
  library.find("cuMemHostAlloc", driver.host_alloc);
  library.find("cuMemFreeHost", driver.host_free);
  library.find("cuMemcpyDtoHAsync_v2", driver.copy_to_host);
  library.find("cuMemcpyHtoDAsync_v2", driver.copy_to_device);
  library.find("cuMemcpy2DAsync_v2", driver.copy_2d);
  if (const cuda::Result result = driver.init(0); result != cuda::kSuccess) {
    try {
      driver.check(result, "cuInit", -1);
    } catch (const Error& error) {
      throw Error(ErrorCode::kUnsupported, std::string("the CUDA driver can't be started: ") + error.what());
    }
  }
  return driver;
}

void CudaDriver::check(cuda::Result result, const char* function, int device) const {
  if (result == cuda::kSuccess) return;
  const char* name = nullptr;
  const char* text = nullptr;
  if (get_error_name(result, &name) != cuda::kSuccess) name = nullptr;
  if (get_error_string(result, &text) != cuda::kSuccess) text = nullptr;
  std::string message = function;
  if (device >= 0) message += " on CUDA device " + std::to_string(device);
  message += ": " + (name != nullptr ? std::string(name) : "CUresult " + std::to_string(result));
  if (text != nullptr) message += " (" + std::string(text) + ")";
  if (result == cuda::kOutOfMemory) message += "; the copies need pinned host memory (see ulimit -l and the cgroup)";
  throw Error(code_of(result), message);
}

bool is_cuda_driver_wanted() {
  return chosen_library() != "off";
}

}  // namespace torchsnapshot
