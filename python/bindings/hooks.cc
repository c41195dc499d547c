#include "hooks.h"

#include <string>

namespace nb = nanobind;

namespace torchsnapshot::python {
namespace {

const dlpack::ExchangeApi* find_exchange_api(nb::handle tensor_type) {
  const nb::object capsule = nb::getattr(tensor_type, "__dlpack_c_exchange_api__", nb::none());
  if (!PyCapsule_IsValid(capsule.ptr(), dlpack::kCapsuleName)) return nullptr;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsuleName));
  return api->header.version.major == 1 && api->tensor_from_py_object != nullptr ? api : nullptr;
}

PyTypeObject* as_type(const nb::object& object) {
  return reinterpret_cast<PyTypeObject*>(object.ptr());
}

}  // namespace

Hooks::Hooks() : torch_(nb::module_::import_("torch")) {
  // Borrowed types: their modules are never unloaded.
  tensor_type = as_type(torch_.attr("Tensor"));
  parameter_type = as_type(torch_.attr("nn").attr("Parameter"));
  ordered_dict_type = as_type(nb::module_::import_("collections").attr("OrderedDict"));
  exchange_api = find_exchange_api(torch_.attr("Tensor"));
  const nb::object functions = nb::module_::import_("torchsnapshot._app_state");
  describe_tensor = functions.attr("describe_tensor");
  cuda_stream = functions.attr("cuda_stream");
  prepare_tensor = functions.attr("prepare_tensor");
  encode_tensor = functions.attr("encode_tensor");
  describe_sharded = functions.attr("describe_sharded");
  decode_tensor = functions.attr("decode_tensor");
  serialize = functions.attr("serialize");
  deserialize = functions.attr("deserialize");
  allocate = functions.attr("allocate");
  to_host = functions.attr("to_host");
  to_device = functions.attr("to_device");
  fill = functions.attr("fill");
}

const Hooks& Hooks::get() {
  // Never destroyed: at exit the interpreter may be gone before static destructors run.
  static const Hooks* const hooks = new Hooks();
  return *hooks;
}

std::optional<DType> Hooks::dtype_of(PyObject* torch_dtype) const {
  const nb::object text = nb::steal(PyObject_Str(torch_dtype));
  return dtype_from_name(nb::cast<const char*>(text));
}

nb::object Hooks::torch_dtype(DType dtype) const {
  const std::string name(dtype_name(dtype).substr(std::string_view("torch.").size()));
  return torch_.attr(name.c_str());
}

}  // namespace torchsnapshot::python
