#include "metadata.h"

#include "text.h"

namespace nb = nanobind;

namespace torchsnapshot::python {
namespace {

nb::tuple parse(const nb::bytes& data) {
  return metadata_to_python(parse_metadata({data.c_str(), data.size()}));
}

nb::object write(const nb::str& version, const nb::int_& world_size, const nb::dict& entries) {
  nb::dict document;
  document["version"] = version;
  document["world_size"] = world_size;
  document["manifest"] = entries;
  const nb::object text = nb::module_::import_("json").attr("dumps")(document);
  return to_str(write_metadata(parse_metadata(text_of(text.ptr()))));
}

}  // namespace

nb::tuple metadata_to_python(const SnapshotMetadata& metadata) {
  // Python's own JSON reader builds its own objects fastest.
  const nb::object document = nb::module_::import_("json").attr("loads")(to_str(write_metadata(metadata)));
  return nb::make_tuple(document["version"], document["world_size"], document["manifest"]);
}

void bind_metadata(nb::module_& module) {
  module.def("parse_metadata", &parse, nb::arg("data"),
             nb::sig("def parse_metadata(data: bytes) -> tuple[str, int, dict[str, dict[str, object]]]"),
             "Reads and validates metadata, JSON or YAML. Returns (version, world_size, {path: entry}).");
  module.def("write_metadata", &write, nb::arg("version"), nb::arg("world_size"), nb::arg("entries"),
             nb::sig("def write_metadata(version: str, world_size: int, entries: dict[str, dict[str, object]]) -> str"),
             "Validates entries and writes the metadata as JSON.");
}

}  // namespace torchsnapshot::python
