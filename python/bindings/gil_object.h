// References to Python objects on threads of the engine.
#pragma once

#include <nanobind/nanobind.h>

namespace torchsnapshot::python {

/// A Python reference that may be dropped by any thread. Made with the GIL held.
class GilObject {
 public:
  explicit GilObject(nanobind::object object) : object_(object.release().ptr()) {}
  ~GilObject() {
    if (!nanobind::is_alive()) return;  // the interpreter has ended
    const nanobind::gil_scoped_acquire gil;
    Py_DECREF(object_);
  }
  GilObject(const GilObject&) = delete;
  GilObject& operator=(const GilObject&) = delete;
  [[nodiscard]] nanobind::handle get() const noexcept { return object_; }

 private:
  PyObject* object_;
};

}  // namespace torchsnapshot::python
