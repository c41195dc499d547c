#include "errors.h"

#include <string>
#include <string_view>

#include "torchsnapshot/error.h"

namespace nb = nanobind;

namespace torchsnapshot::python {
namespace {

/// A message may hold any bytes: names of files, keys with lone surrogates.
nb::object message_of(const Error& error) {
  const std::string_view text = error.what();
  return nb::steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "backslashreplace"));
}

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Error& error) {
    const nb::object exception = exception_of(error);
    PyErr_SetObject(exception.type().ptr(), exception.ptr());
  }
}

}  // namespace

nb::object exception_of(const Error& error) {
  const std::string code(to_string(error.code()));
  return nb::module_::import_("torchsnapshot.errors").attr("from_code")(code, message_of(error), error.sys_errno());
}

void register_errors(nb::module_&) {
  nb::register_exception_translator(translate);
}

}  // namespace torchsnapshot::python
