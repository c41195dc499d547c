// Engine errors as Python exceptions.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

namespace torchsnapshot::python {

/// Makes every Error that leaves a bound function the exception that torchsnapshot.errors.from_code gives for it.
void register_errors(nanobind::module_& module);

}  // namespace torchsnapshot::python
