// Tensors on devices, copied by torch itself.
#pragma once

namespace torchsnapshot::python {

/// Makes the engine copy to and from devices through torchsnapshot._app_state.to_host and to_device.
void install_device_copier();

}  // namespace torchsnapshot::python
