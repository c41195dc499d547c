// A storage plugin written in Python, as a Storage.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <string>

#include "torchsnapshot/storage.h"

namespace torchsnapshot::python {

/// `bridge` is a torchsnapshot._plugin_bridge.PluginBridge. Each call takes the GIL. A plugin writes and reads whole
/// objects, so an object being written is held in memory. Its Python exceptions pass through unchanged.
std::shared_ptr<Storage> open_plugin_storage(nanobind::object bridge, std::string url);

}  // namespace torchsnapshot::python
