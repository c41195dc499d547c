// The extension torchsnapshot._core: translates between Python and the engine, and holds no logic of its own.
#include <nanobind/nanobind.h>

#include "coordinator.h"
#include "device_copier.h"
#include "errors.h"
#include "metadata.h"
#include "snapshot.h"
#include "storage.h"

NB_MODULE(_core, module) {
  using namespace torchsnapshot::python;
  module.doc() = "The torchsnapshot engine.";
  module.attr("version") = TORCHSNAPSHOT_VERSION;
  register_errors(module);
  bind_metadata(module);
  bind_coordinator(module);
  bind_snapshot(module);
  bind_storage(module);
  install_device_copier();
}
