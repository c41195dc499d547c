#include "errors.h"

#include <string>

#include "torchsnapshot/error.h"

namespace nb = nanobind;

namespace torchsnapshot::python {
namespace {

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Error& error) {
    const std::string code(to_string(error.code()));
    nb::object exception =
        nb::module_::import_("torchsnapshot.errors").attr("from_code")(code, error.what(), error.sys_errno());
    PyErr_SetObject(exception.type().ptr(), exception.ptr());
  }
}

}  // namespace

void register_errors(nb::module_&) {
  nb::register_exception_translator(translate);
}

}  // namespace torchsnapshot::python
