// torchsnapshot._coordination as the engine's Coordinator.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "torchsnapshot/coordinator.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot::python {

/// For a rank that can't translate its state: `refuse` (refuse_take, refuse_restore) is called with the exception in
/// flight, if there are other ranks. Called from a catch block, with the GIL.
void refuse_in_flight(Coordinator* coordinator, void (*refuse)(Coordinator&, const Error&));

/// Adds Coordinator, agree_on_url, refuse_take and refuse_restore to the module.
void bind_coordinator(nanobind::module_& module);

}  // namespace torchsnapshot::python
