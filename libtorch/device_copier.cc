#include "libtorch/device_copier.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <memory>
#include <mutex>
#include <string>

#include "libtorch/tensor_leaf.h"
#include "tensor/device_copy.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot::libtorch {
namespace {

/// The part of the owner that the engine's view means.
at::Tensor part_of(const TensorView& view) {
  const at::Tensor owner = tensor_of(view).detach();
  const auto* begin = static_cast<const std::byte*>(owner.const_data_ptr());
  const std::int64_t offset =
      owner.storage_offset() + (view.data - begin) / static_cast<std::int64_t>(owner.itemsize());
  return owner.as_strided(view.shape, view.strides, offset);
}

/// Host memory as a tensor, not owned.
at::Tensor host_tensor(const void* data, std::size_t bytes, const at::Tensor& like) {
  return at::from_blob(const_cast<void*>(data), {static_cast<std::int64_t>(bytes / like.itemsize())},
                       at::TensorOptions(like.scalar_type()));
}

/// Waits for all that the device was told, on whatever stream: the engine's threads have none of the program's.
void settle(const at::Tensor& part) {
  const c10::Device device = part.device();
  if (!device.is_cuda() && !device.is_xpu()) return;  // others have one, or none
  c10::impl::getDeviceGuardImpl(device.type())->synchronizeDevice(device.index());
}

/// Through torch's own copies, so it works for every device that torch knows.
class TorchDeviceCopier final : public DeviceCopier {
 public:
  void to_host(const TensorView& view, std::uint64_t begin, std::span<std::byte> out) override {
    translate([&] {
      const at::Tensor part = part_of(view);
      settle(part);
      at::Tensor host = host_tensor(out.data(), out.size(), part);
      host.copy_(part.reshape(-1).narrow(0, static_cast<std::int64_t>(begin / part.itemsize()), host.numel()));
    });
  }

  void to_device(std::span<const std::byte> in, std::uint64_t begin, const TensorView& view) override {
    translate([&] {
      const at::Tensor part = part_of(view);
      settle(part);
      const at::Tensor host = host_tensor(in.data(), in.size(), part);
      const auto first = static_cast<std::int64_t>(begin / part.itemsize());
      if (part.is_contiguous()) {
        part.view(-1).narrow(0, first, host.numel()).copy_(host);
        settle(part);
        return;
      }
      at::Tensor rest = at::arange(first, first + host.numel(), part.options().dtype(at::kLong));
      c10::List<std::optional<at::Tensor>> index;
      std::vector<at::Tensor> places(static_cast<std::size_t>(part.dim()));
      for (std::size_t d = places.size(); d-- > 0;) {
        const std::int64_t size = part.size(static_cast<std::int64_t>(d));
        places[d] = rest.remainder(size);
        rest = rest.floor_divide(size);
      }
      for (const at::Tensor& place : places) index.push_back(place);
      part.index_put_(index, host.to(part.device()));
      settle(part);
    });
  }

 private:
  template <typename Copy>
  static void translate(Copy copy) {
    const at::NoGradGuard no_grad;
    try {
      copy();
    } catch (const c10::Error& error) {
      throw Error(ErrorCode::kIo, std::string("copying from or to a device: ") + error.what_without_backtrace());
    }
  }
};

}  // namespace

void install_device_copier() {
  static std::once_flag once;
  std::call_once(once, [] { set_device_copier(std::make_shared<TorchDeviceCopier>()); });
}

}  // namespace torchsnapshot::libtorch
