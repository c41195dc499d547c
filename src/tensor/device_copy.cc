#include "tensor/device_copy.h"

#include <utility>

#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

std::shared_ptr<DeviceCopier>& registered() {
  static std::shared_ptr<DeviceCopier> copier;
  return copier;
}

}  // namespace

void set_device_copier(std::shared_ptr<DeviceCopier> copier) {
  registered() = std::move(copier);
}

DeviceCopier& device_copier() {
  if (!registered()) {
    throw Error(ErrorCode::kUnsupported,
                "a tensor is on a device, and this program has registered no way to copy from and to devices; "
                "move the tensor to the CPU first");
  }
  return *registered();
}

}  // namespace torchsnapshot
