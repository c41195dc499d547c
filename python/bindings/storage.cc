#include "storage.h"

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gil_object.h"
#include "text.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/storage.h"

namespace nb = nanobind;

namespace torchsnapshot::python {
namespace {

/// Calls the program's own function under the GIL. Its exceptions keep their type.
CredentialsCallback callback_of(nb::object function) {
  if (function.is_none()) return nullptr;
  auto held = std::make_shared<GilObject>(std::move(function));
  return [held] {
    const nb::gil_scoped_acquire gil;
    const nb::object given = held->get()();
    std::map<std::string, std::string> fields;
    if (!nb::isinstance<nb::dict>(given)) {
      throw Error(ErrorCode::kTypeMismatch, "the credentials callback must return a dict of str to str");
    }
    for (const auto& [name, value] : nb::borrow<nb::dict>(given)) {
      if (!nb::isinstance<nb::str>(name) || !nb::isinstance<nb::str>(value)) {
        throw Error(ErrorCode::kTypeMismatch, "the credentials callback must return a dict of str to str");
      }
      fields.emplace(text_of(name.ptr()), text_of(value.ptr()));
    }
    return fields;
  };
}

void write_object(Storage& storage, const nb::str& location, const nb::object& data) {
  const std::string name = text_of(location.ptr());
  Py_buffer buffer{};
  if (PyObject_GetBuffer(data.ptr(), &buffer, PyBUF_CONTIG_RO) != 0) nb::raise_python_error();
  struct Release {
    Py_buffer& buffer;
    ~Release() { PyBuffer_Release(&buffer); }
  } const release{buffer};
  const nb::gil_scoped_release no_gil;
  storage.publish(name, {static_cast<const char*>(buffer.buf), static_cast<std::size_t>(buffer.len)});
}

nb::object read_object(Storage& storage, const nb::str& location, std::optional<std::uint64_t> begin,
                       std::optional<std::uint64_t> end) {
  const std::string name = text_of(location.ptr());
  if (begin.has_value() != end.has_value() || (begin && *begin > *end)) {
    throw Error(ErrorCode::kInvalidArgument,
                "object '" + name + "': a byte range is two numbers, the smaller one first");
  }
  std::uint64_t size = 0;
  std::unique_ptr<ObjectReader> reader;
  {
    const nb::gil_scoped_release no_gil;
    reader = storage.open(name, {});
    if (begin) {
      size = *end - *begin;
    } else {
      const std::vector<std::string> names{name};
      size = storage.sizes(names, {}).front().value_or(0);
    }
  }
  // The object is filled before anybody else sees it.
  nb::object content = nb::steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
  if (!content.is_valid()) nb::raise_python_error();
  auto* const memory = reinterpret_cast<std::byte*>(PyBytes_AS_STRING(content.ptr()));
  const nb::gil_scoped_release no_gil;
  reader->read(begin.value_or(0), {memory, size});
  return content;
}

}  // namespace

void bind_storage(nb::module_& module) {
  module.def(
      "open_storage",
      [](const nb::str& url, const StorageOptions& options, nb::object credentials) {
        const std::string text = text_of(url.ptr());
        const CredentialsCallback callback = callback_of(std::move(credentials));
        const nb::gil_scoped_release no_gil;
        return open_storage(text, options, callback);
      },
      nb::arg("url"), nb::arg("options"), nb::arg("credentials").none() = nb::none(), "Opens a native backend.");
  module.def("storage_write", &write_object, nb::arg("storage"), nb::arg("location"), nb::arg("data"),
             "Creates or replaces an object.");
  module.def(
      "storage_read", &read_object, nb::arg("storage"), nb::arg("location"), nb::arg("begin").none() = nb::none(),
      nb::arg("end").none() = nb::none(),
      nb::sig("def storage_read(storage: Storage, location: str, begin: int | None = None, end: int | None = None) "
              "-> bytes"),
      "The whole object, or [begin, end) of it.");
  module.def(
      "storage_remove",
      [](Storage& storage, const nb::str& location) {
        const std::vector<std::string> names{text_of(location.ptr())};
        const nb::gil_scoped_release no_gil;
        storage.remove(names);
      },
      nb::arg("storage"), nb::arg("location"), "Removes an object; one that is not there is no error.");
  module.def(
      "storage_list",
      [](Storage& storage, const nb::str& prefix) {
        const std::string text = text_of(prefix.ptr());
        std::vector<std::string> names;
        {
          const nb::gil_scoped_release no_gil;
          names = storage.list(text);
        }
        nb::list result;
        for (const std::string& name : names) result.append(to_str(name));
        return result;
      },
      nb::arg("storage"), nb::arg("prefix"), nb::sig("def storage_list(storage: Storage, prefix: str) -> list[str]"),
      "Locations that start with a prefix, sorted.");
}

}  // namespace torchsnapshot::python
