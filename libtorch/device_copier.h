// Tensors on devices, for the engine.
#pragma once

namespace torchsnapshot::libtorch {

/// Registers libtorch's copies as the engine's DeviceCopier, once. Thread-safe.
void install_device_copier();

}  // namespace torchsnapshot::libtorch
