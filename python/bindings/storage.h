// Storages for Python: opening them, and objects in them for programs that use a storage plugin directly.
#pragma once

#include <nanobind/nanobind.h>

namespace torchsnapshot::python {

/// The class Storage is bound by bind_snapshot, which has to come first.
void bind_storage(nanobind::module_& module);

}  // namespace torchsnapshot::python
