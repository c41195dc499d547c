// Engine errors as Python exceptions.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "torchsnapshot/error.h"

namespace torchsnapshot::python {

/// The exception that torchsnapshot.errors.from_code gives for an error of the engine.
nanobind::object exception_of(const Error& error);

/// Makes every Error that leaves a bound function its exception.
void register_errors(nanobind::module_& module);

}  // namespace torchsnapshot::python
