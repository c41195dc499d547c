// Storage, take and restore for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace torchsnapshot::python {

void bind_snapshot(nanobind::module_& module);

}  // namespace torchsnapshot::python
