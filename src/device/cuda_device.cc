#include "device/cuda_device.h"

#include <algorithm>

namespace torchsnapshot {

CudaDevice::CudaDevice(const CudaDriver& driver, int index) : CudaDevice(driver, index, nullptr) {
  // The destructor runs when one of these fails.
  check(driver.device_get(&device_, index), "cuDeviceGet");
  cuda::Context context = nullptr;
  check(driver.primary_context_retain(&context, device_), "cuDevicePrimaryCtxRetain");
  context_ = context;
  const Current current(*this);
  check(driver.stream_create(&to_host_, cuda::kStreamNonBlocking), "cuStreamCreate");
  check(driver.stream_create(&to_device_, cuda::kStreamNonBlocking), "cuStreamCreate");
}

CudaDevice::~CudaDevice() {
  if (context_ == nullptr) return;
  try {
    const Current current(*this);
    for (const cuda::Event event : events_) driver_.event_destroy(event);
    for (const cuda::Stream stream : {to_host_, to_device_}) {
      if (stream != nullptr) driver_.stream_destroy(stream);
    }
  } catch (...) {  // NOLINT(bugprone-empty-catch): the driver is going down; it frees them with the context
  }
  driver_.primary_context_release(device_);
}

CudaDevice::Current::Current(const CudaDevice& device) : driver_(device.driver_) {
  device.check(driver_.context_push(device.context_), "cuCtxPushCurrent");
}

CudaDevice::Current::~Current() {
  cuda::Context popped = nullptr;
  driver_.context_pop(&popped);
}

CudaEvent CudaDevice::record(cuda::Stream stream) {
  const Current current(*this);
  cuda::Event handle = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (!events_.empty()) {
      handle = events_.back();
      events_.pop_back();
    } else {
      events_.reserve(event_count_ + 1);  // so that give_back can't fail
      check(driver_.event_create(&handle, cuda::kEventBlockingSync | cuda::kEventDisableTiming), "cuEventCreate");
      ++event_count_;
    }
  }
  CudaEvent event(*this, handle);
  check(driver_.event_record(handle, stream), "cuEventRecord");
  return event;
}

void CudaDevice::let_wait(cuda::Stream stream, const CudaEvent& event) const {
  const Current current(*this);
  check(driver_.stream_wait_event(stream, event.handle_, 0), "cuStreamWaitEvent");
}

bool CudaDevice::settle() const noexcept {
  try {
    const Current current(*this);
    // Both, whatever the first says.
    const bool is_read = driver_.stream_synchronize(to_host_) == cuda::kSuccess;
    return driver_.stream_synchronize(to_device_) == cuda::kSuccess && is_read;
  } catch (...) {
    return false;
  }
}

void* CudaDevice::host_alloc(std::size_t bytes) const {
  const Current current(*this);
  void* memory = nullptr;
  check(driver_.host_alloc(&memory, bytes, cuda::kHostAllocPortable), "cuMemHostAlloc");
  return memory;
}

void CudaDevice::host_free(void* memory) const noexcept {
  try {
    const Current current(*this);
    driver_.host_free(memory);
  } catch (...) {  // NOLINT(bugprone-empty-catch): as in the destructor
  }
}

void CudaDevice::copy_to_host(std::byte* target, cuda::DevicePointer source, std::size_t bytes) const {
  const Current current(*this);
  check(driver_.copy_to_host(target, source, bytes, to_host_), "cuMemcpyDtoHAsync");
}

void CudaDevice::copy_to_device(cuda::DevicePointer target, const std::byte* source, std::size_t bytes) const {
  const Current current(*this);
  check(driver_.copy_to_device(target, source, bytes, to_device_), "cuMemcpyHtoDAsync");
}

void CudaDevice::copy_2d(const cuda::Copy2D& copy, cuda::Stream stream) const {
  const Current current(*this);
  check(driver_.copy_2d(&copy, stream), "cuMemcpy2DAsync");
}

void CudaDevice::give_back(cuda::Event event) noexcept {
  const std::lock_guard lock(mutex_);
  events_.push_back(event);
}

CudaEvent::~CudaEvent() {
  if (device_ != nullptr) device_->give_back(handle_);
}

void CudaEvent::wait() const {
  const CudaDevice::Current current(*device_);
  device_->check(device_->driver_.event_synchronize(handle_), "cuEventSynchronize");
}

}  // namespace torchsnapshot
