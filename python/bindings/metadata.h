// The metadata codec for Python.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "torchsnapshot/manifest.h"

namespace torchsnapshot::python {

/// (version, world_size, {path: entry as in the file}).
nanobind::tuple metadata_to_python(const SnapshotMetadata& metadata);

void bind_metadata(nanobind::module_& module);

}  // namespace torchsnapshot::python
