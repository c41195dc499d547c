#include "device_copier.h"

#include <nanobind/nanobind.h>

#include <memory>

#include "hooks.h"
#include "tensor/device_copy.h"

namespace nb = nanobind;

namespace torchsnapshot::python {
namespace {

nb::tuple to_tuple(const Dims& dims) {
  nb::list list;
  for (const std::int64_t dim : dims) list.append(dim);
  return nb::tuple(list);
}

/// The engine's view may be a part of the tensor that owns it: its address, shape and strides tell which.
class TorchDeviceCopier final : public DeviceCopier {
 public:
  void to_host(const TensorView& view, std::uint64_t begin, std::span<std::byte> out) override {
    const nb::gil_scoped_acquire gil;
    const nb::object buffer = nb::steal(
        PyMemoryView_FromMemory(reinterpret_cast<char*>(out.data()), static_cast<Py_ssize_t>(out.size()), PyBUF_WRITE));
    Hooks::get().to_host(owner(view), reinterpret_cast<std::uintptr_t>(view.data), to_tuple(view.shape),
                         to_tuple(view.strides), begin, buffer);
  }

  void to_device(std::span<const std::byte> in, std::uint64_t begin, const TensorView& view) override {
    const nb::gil_scoped_acquire gil;
    const nb::object buffer = nb::steal(PyMemoryView_FromMemory(
        const_cast<char*>(reinterpret_cast<const char*>(in.data())), static_cast<Py_ssize_t>(in.size()), PyBUF_READ));
    Hooks::get().to_device(owner(view), reinterpret_cast<std::uintptr_t>(view.data), to_tuple(view.shape),
                           to_tuple(view.strides), begin, buffer);
  }

 private:
  static nb::handle owner(const TensorView& view) { return static_cast<PyObject*>(view.owner.get()); }
};

}  // namespace

void install_device_copier() {
  set_device_copier(std::make_shared<TorchDeviceCopier>());
}

}  // namespace torchsnapshot::python
