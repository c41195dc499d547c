// One CUDA device: its primary context, streams of our own, and events.
#pragma once

#include <mutex>
#include <utility>
#include <vector>

#include "device/cuda_driver.h"

namespace torchsnapshot {

class CudaEvent;

/// Holds the primary context, which is the one that torch uses too. Thread-safe. Outlives its events.
class CudaDevice {
 public:
  /// Throws an Error that names the device. The driver outlives it.
  CudaDevice(const CudaDriver& driver, int index);
  ~CudaDevice();
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  /// Makes the device's context the current one of this thread, and the one before again at its end.
  class Current {
   public:
    explicit Current(const CudaDevice& device);
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    const CudaDriver& driver_;
  };

  [[nodiscard]] int index() const noexcept { return index_; }
  /// Streams that don't wait for the default stream, nor it for them; one a direction, as devices copy both ways at
  /// once.
  [[nodiscard]] cuda::Stream to_host() const noexcept { return to_host_; }
  [[nodiscard]] cuda::Stream to_device() const noexcept { return to_device_; }

  /// An event after all that was queued on `stream` (of this device) so far.
  CudaEvent record(cuda::Stream stream);
  /// What is queued on `stream` from now on waits for `event`, of whatever device.
  void let_wait(cuda::Stream stream, const CudaEvent& event) const;
  /// Waits until our streams are idle. False when the driver fails: then nobody knows.
  bool settle() const noexcept;

  [[nodiscard]] void* host_alloc(std::size_t bytes) const;
  void host_free(void* memory) const noexcept;
  void copy_to_host(std::byte* target, cuda::DevicePointer source, std::size_t bytes) const;
  void copy_to_device(cuda::DevicePointer target, const std::byte* source, std::size_t bytes) const;
  void copy_2d(const cuda::Copy2D& copy, cuda::Stream stream) const;

 private:
  friend class CudaEvent;
  explicit CudaDevice(const CudaDriver& driver, int index, std::nullptr_t) : driver_(driver), index_(index) {}
  void check(cuda::Result result, const char* function) const { driver_.check(result, function, index_); }
  void give_back(cuda::Event event) noexcept;

  const CudaDriver& driver_;
  const int index_;
  cuda::Device device_ = 0;
  cuda::Context context_ = nullptr;
  cuda::Stream to_host_ = nullptr;
  cuda::Stream to_device_ = nullptr;
  std::mutex mutex_;
  std::vector<cuda::Event> events_;  ///< not in use; with room for all
  std::size_t event_count_ = 0;
};

/// A point in a stream. Move-only; its destructor gives the driver's event back to the device.
class CudaEvent {
 public:
  CudaEvent(CudaEvent&& other) noexcept : device_(std::exchange(other.device_, nullptr)), handle_(other.handle_) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~CudaEvent();

  /// Waits until the stream has come so far.
  void wait() const;
  [[nodiscard]] const CudaDevice& device() const noexcept { return *device_; }

 private:
  friend class CudaDevice;
  CudaEvent(CudaDevice& device, cuda::Event handle) noexcept : device_(&device), handle_(handle) {}
  CudaDevice* device_;
  cuda::Event handle_;
};

}  // namespace torchsnapshot
