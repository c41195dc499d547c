#include "plugin_storage.h"

#include <nanobind/stl/string.h>

#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "core/path_codec.h"
#include "gil_object.h"
#include "storage/object_checks.h"
#include "text.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/manifest.h"

namespace nb = nanobind;

namespace torchsnapshot::python {
namespace {

/// Copies what a plugin returned; it must be `expected` bytes long.
void copy_result(const nb::object& result, std::span<std::byte> out, const std::string& location) {
  Py_buffer buffer{};
  if (PyObject_GetBuffer(result.ptr(), &buffer, PyBUF_CONTIG_RO) != 0) nb::raise_python_error();
  const auto size = static_cast<std::size_t>(buffer.len);
  if (size == out.size() && size > 0) std::memcpy(out.data(), buffer.buf, size);
  PyBuffer_Release(&buffer);
  if (size != out.size()) {
    throw Error(ErrorCode::kCorrupt, "object '" + location + "': the storage plugin returned " + std::to_string(size) +
                                         " bytes instead of " + std::to_string(out.size()));
  }
}

/// Collects the object in a bytearray, which stays valid if the plugin keeps a reference to what it is given.
class PluginWriter final : public ObjectWriter {
 public:
  PluginWriter(std::shared_ptr<GilObject> bridge, std::string location, std::uint64_t size)
      : bridge_(std::move(bridge)), location_(std::move(location)), progress_(size) {
    const nb::gil_scoped_acquire gil;
    nb::object content = nb::steal(PyByteArray_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
    if (!content.is_valid()) nb::raise_python_error();
    data_ = PyByteArray_AS_STRING(content.ptr());
    content_ = std::make_unique<GilObject>(std::move(content));
  }

  void write(std::uint64_t offset, std::span<const std::byte> data) override {
    progress_.check_block(offset, data.size(), location_);
    if (!data.empty()) std::memcpy(data_ + offset, data.data(), data.size());
    progress_.add(data.size());
  }

  void finish() override {
    progress_.check_complete(location_);
    const nb::gil_scoped_acquire gil;
    const nb::object view = nb::steal(PyMemoryView_FromObject(content_->get().ptr()));
    if (!view.is_valid()) nb::raise_python_error();
    bridge_->get().attr("write")(to_str(location_), view);
    content_.reset();
  }

 private:
  std::shared_ptr<GilObject> bridge_;
  std::string location_;
  WriteProgress progress_;
  std::unique_ptr<GilObject> content_;
  char* data_ = nullptr;
};

class PluginReader final : public ObjectReader {
 public:
  PluginReader(std::shared_ptr<GilObject> bridge, std::string location)
      : bridge_(std::move(bridge)), location_(std::move(location)) {}

  void read(std::uint64_t offset, std::span<std::byte> out) override {
    const nb::gil_scoped_acquire gil;
    const nb::object result = bridge_->get().attr("read")(to_str(location_), offset, offset + out.size());
    copy_result(result, out, location_);
  }

 private:
  std::shared_ptr<GilObject> bridge_;
  std::string location_;
};

class PluginStorage final : public Storage {
 public:
  PluginStorage(nb::object bridge, std::string url)
      : bridge_(std::make_shared<GilObject>(std::move(bridge))), url_(std::move(url)) {}

  [[nodiscard]] std::string url() const override { return url_; }

  std::unique_ptr<ObjectWriter> create(const std::string& location, std::uint64_t size, std::stop_token stop) override {
    check_stop(stop, "create", name_of(location));
    check_location(location);
    return std::make_unique<PluginWriter>(bridge_, location, size);
  }

  std::unique_ptr<ObjectReader> open(const std::string& location, std::stop_token stop) override {
    check_stop(stop, "open", name_of(location));
    check_location(location);
    return std::make_unique<PluginReader>(bridge_, location);
  }

  std::string read_all(const std::string& location, std::uint64_t limit, std::stop_token stop) override {
    check_stop(stop, "read", name_of(location));
    check_location(location);
    const nb::gil_scoped_acquire gil;
    nb::object result;
    try {
      result = bridge_->get().attr("read")(to_str(location), nb::none(), nb::none());
    } catch (nb::python_error& error) {
      // What "not there" looks like to a plugin; the engine has to know it from failures.
      if (error.matches(PyExc_FileNotFoundError) || error.matches(PyExc_KeyError)) {
        throw Error(ErrorCode::kNotFound, name_of(location) + ": not found");
      }
      // What a failure to read the metadata means is for the engine to say; any other passes through.
      if (location != kMetadataName) throw;
      const std::string text = nb::cast<std::string>(nb::str(error.value()));
      const std::string type = nb::cast<std::string>(error.type().attr("__name__"));
      throw Error(ErrorCode::kIo, name_of(location) + ": " + type + ": " + text);
    }
    const nb::object bytes = nb::steal(PyBytes_FromObject(result.ptr()));
    if (!bytes.is_valid()) nb::raise_python_error();
    if (static_cast<std::uint64_t>(PyBytes_GET_SIZE(bytes.ptr())) > limit) {
      throw Error(ErrorCode::kCorrupt, name_of(location) + ": larger than " + std::to_string(limit) + " bytes");
    }
    return {PyBytes_AS_STRING(bytes.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.ptr()))};
  }

  std::vector<std::optional<std::uint64_t>> sizes(std::span<const std::string> locations, std::stop_token) override {
    return std::vector<std::optional<std::uint64_t>>(locations.size());  // the interface has no call for it
  }

  void sync() override {}  // a plugin's write returns when the object is stored

  void publish(const std::string& location, std::string_view content) override {
    check_location(location);
    const nb::gil_scoped_acquire gil;
    bridge_->get().attr("write")(to_str(location), to_bytes(content));
  }

  std::vector<std::string> list(const std::string&) override {
    throw Error(ErrorCode::kUnsupported, url_ + ": a Python storage plugin can't list objects");
  }

  void remove(std::span<const std::string> locations) override {
    const nb::gil_scoped_acquire gil;
    for (const std::string& location : locations) {
      try {
        bridge_->get().attr("delete")(to_str(location));
      } catch (nb::python_error& error) {
        if (error.matches(PyExc_FileNotFoundError) || error.matches(PyExc_KeyError)) continue;
        // Removing is best effort at every place it is done: told, never fatal.
        throw Error(ErrorCode::kIo, name_of(location) + ": delete: " + error.what());
      }
    }
  }

 private:
  [[nodiscard]] std::string name_of(const std::string& location) const { return url_ + "/" + location; }

  std::shared_ptr<GilObject> bridge_;
  std::string url_;
};

}  // namespace

std::shared_ptr<Storage> open_plugin_storage(nb::object bridge, std::string url) {
  return std::make_shared<PluginStorage>(std::move(bridge), std::move(url));
}

}  // namespace torchsnapshot::python
