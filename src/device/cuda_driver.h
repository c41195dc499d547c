// The CUDA driver, loaded at run time the first time a tensor on a CUDA device is copied.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/cuda_abi.h"

namespace torchsnapshot {

/// The functions of libcuda that are used. Each is the newest version that CUDA 11 has.
struct CudaDriver {
  cuda::Result (*init)(unsigned flags);
  cuda::Result (*get_error_name)(cuda::Result result, const char** name);
  cuda::Result (*get_error_string)(cuda::Result result, const char** text);
  cuda::Result (*device_get)(cuda::Device* device, int ordinal);
  cuda::Result (*primary_context_retain)(cuda::Context* context, cuda::Device device);
  cuda::Result (*primary_context_release)(cuda::Device device);
  cuda::Result (*context_push)(cuda::Context context);
  cuda::Result (*context_pop)(cuda::Context* context);
  cuda::Result (*stream_create)(cuda::Stream* stream, unsigned flags);
  cuda::Result (*stream_destroy)(cuda::Stream stream);
  cuda::Result (*stream_wait_event)(cuda::Stream stream, cuda::Event event, unsigned flags);
  cuda::Result (*stream_synchronize)(cuda::Stream stream);
  cuda::Result (*event_create)(cuda::Event* event, unsigned flags);
  cuda::Result (*event_destroy)(cuda::Event event);
  cuda::Result (*event_record)(cuda::Event event, cuda::Stream stream);
  cuda::Result (*event_synchronize)(cuda::Event event);
  cuda::Result (*host_alloc)(void** memory, std::size_t bytes, unsigned flags);
  cuda::Result (*host_free)(void* memory);
  cuda::Result (*copy_to_host)(void* target, cuda::DevicePointer source, std::size_t bytes, cuda::Stream stream);
  cuda::Result (*copy_to_device)(cuda::DevicePointer target, const void* source, std::size_t bytes,
                                 cuda::Stream stream);
  cuda::Result (*copy_2d)(const cuda::Copy2D* copy, cuda::Stream stream);

  /// Throws an Error that names the function, the device and the result if that is none of success.
  void check(cuda::Result result, const char* function, int device) const;
};

/// The file that TORCHSNAPSHOT_LIBCUDA names, or libcuda.so.1, loaded and started. Throws Error(kUnsupported) with the
/// remedy when there is none that can be used.
CudaDriver load_cuda_driver();

/// False where the user has chosen by TORCHSNAPSHOT_LIBCUDA=off that the face copies CUDA tensors (DeviceCopier).
bool is_cuda_driver_wanted();

}  // namespace torchsnapshot
