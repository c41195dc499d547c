// Python str and UTF-8 with lone surrogates ("surrogatepass"), as the engine keeps text.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <string_view>
#include <vector>

namespace torchsnapshot::python {

inline std::string text_of(PyObject* unicode) {
  Py_ssize_t size = 0;
  if (const char* utf8 = PyUnicode_AsUTF8AndSize(unicode, &size)) return {utf8, static_cast<std::size_t>(size)};
  PyErr_Clear();
  const nanobind::object bytes = nanobind::steal(PyUnicode_AsEncodedString(unicode, "utf-8", "surrogatepass"));
  if (!bytes.is_valid()) nanobind::raise_python_error();
  return {PyBytes_AS_STRING(bytes.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.ptr()))};
}

inline nanobind::object to_str(std::string_view text) {
  nanobind::object unicode =
      nanobind::steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogatepass"));
  if (!unicode.is_valid()) nanobind::raise_python_error();
  return unicode;
}

/// The path of encoded components; an empty first one counts too.
inline std::string join_components(const std::vector<std::string>& components) {
  std::string path;
  for (std::size_t i = 0; i < components.size(); ++i) path += (i == 0 ? "" : "/") + components[i];
  return path;
}

inline nanobind::bytes to_bytes(std::string_view data) {
  return nanobind::bytes(data.data(), data.size());
}

}  // namespace torchsnapshot::python
