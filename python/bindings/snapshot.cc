#include "snapshot.h"

#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "coordinator.h"
#include "core/path_codec.h"
#include "errors.h"
#include "from_value.h"
#include "gil_object.h"
#include "metadata.h"
#include "plugin_storage.h"
#include "text.h"
#include "to_value.h"
#include "torchsnapshot/snapshot.h"

namespace nb = nanobind;

namespace torchsnapshot::python {
namespace {

/// A callback that may be called by any thread. What it raises is printed, not thrown: an observer must not break
/// what it observes.
template <typename... Arguments>
auto observer(const nb::object& callback) {
  return [callback = std::make_shared<GilObject>(callback)](const Arguments&... arguments) {
    if (!nb::is_alive()) return;  // a take that was still pending when the interpreter ended
    const nb::gil_scoped_acquire gil;
    try {
      callback->get()(arguments...);
    } catch (nb::python_error& error) {
      error.discard_as_unraisable(callback->get());
    }
  };
}

/// Limits and observers as Python passes them.
struct PyIoOptions {
  std::uint64_t memory_budget_bytes = 0;
  std::uint32_t io_concurrency = 16;
  bool checksums = true;
  nb::object on_progress = nb::none();
  nb::object on_notice = nb::none();

  [[nodiscard]] IoOptions to_engine() const {
    IoOptions io;
    // Ctrl-C: Python only notes the signal; the waiting thread has to ask for it.
    io.poll = [] {
      const nb::gil_scoped_acquire gil;
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
    };
    io.memory_budget_bytes = memory_budget_bytes;
    io.io_concurrency = io_concurrency;
    io.checksums = checksums;
    if (!on_progress.is_none()) {
      io.on_progress = [report = observer<std::uint64_t, std::uint64_t>(on_progress)](const Progress& progress) {
        report(progress.bytes_done, progress.bytes_total);
      };
    }
    if (!on_notice.is_none()) {
      io.on_notice = [report = observer<const char*>(on_notice)](const std::string& message) {
        report(message.c_str());
      };
    }
    return io;
  }
};

/// Limits of a take beside those of PyIoOptions.
struct PyTakeOptions {
  std::vector<std::string> replicated;
  std::uint64_t max_chunk_bytes = 0;
  std::uint64_t max_shard_bytes = 0;
  std::uint64_t slab_bytes = 0;
  bool batching = true;
  std::string staging = "eager";
  bool lazy_user_faults = false;
  std::shared_ptr<Coordinator> coordinator;
  double commit_timeout_seconds = 0;
  nb::object group = nb::none();  ///< the process group
  nb::object on_planned = nb::none();
};

StagingMode staging_of(const std::string& name) {
  if (name == "lazy") return StagingMode::kLazy;
  return name == "step" ? StagingMode::kPromised : StagingMode::kEager;
}

using PyAppState = std::vector<std::pair<nb::str, nb::object>>;

/// What this rank can't translate ends the take on all.
AppState to_save(const PyAppState& app, ToValue& values, Coordinator* coordinator) {
  try {
    AppState state;
    state.reserve(app.size());
    for (const auto& [key, object] : app) {
      std::string name = text_of(key.ptr());
      Value value = values.to_save(name, object);
      state.emplace_back(std::move(name), std::move(value));
    }
    return state;
  } catch (...) {
    refuse_in_flight(coordinator, refuse_take);
    throw;
  }
}

TakeOptions to_engine(const PyTakeOptions& take_options, const PyIoOptions& io) {
  TakeOptions options;
  options.io = io.to_engine();
  options.replicated = take_options.replicated;
  options.max_chunk_bytes = take_options.max_chunk_bytes;
  options.max_shard_bytes = take_options.max_shard_bytes;
  options.slab_bytes = take_options.slab_bytes;
  options.batching = take_options.batching;
  options.staging = staging_of(take_options.staging);
  options.lazy_user_faults = take_options.lazy_user_faults;
  options.coordinator = take_options.coordinator;
  options.commit_timeout = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::duration<double>(take_options.commit_timeout_seconds));
  if (!take_options.on_planned.is_none()) {
    options.on_planned = [told = std::make_shared<GilObject>(take_options.on_planned)](const PlanReport& report) {
      const nb::gil_scoped_acquire gil;
      told->get()(report.is_unchanged, report.figures.bytes_sent + report.figures.bytes_received);
    };
  }
  return options;
}

Snapshot take(std::shared_ptr<Storage> storage, const PyAppState& app, const PyTakeOptions& take_options,
              const PyIoOptions& io, nb::object prepare) {
  ToValue values(std::move(prepare), take_options.group);
  const AppState state = to_save(app, values, take_options.coordinator.get());
  const TakeOptions options = to_engine(take_options, io);
  const nb::gil_scoped_release release;
  return Snapshot::take(std::move(storage), state, options);
}

/// The Python exception that `error` becomes.
nb::object to_exception(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const nb::python_error& python) {
    return nb::borrow(python.value());
  } catch (const Error& engine) {
    return exception_of(engine);
  } catch (const std::exception& other) {
    return nb::module_::import_("builtins").attr("RuntimeError")(other.what());
  }
}

/// Calls `check`. What it raises comes without its traceback: the take keeps the error, and the frames have what keeps
/// the take, a circle that Python's collector does not see.
void call_without_trace(nb::handle check) {
  try {
    check();
  } catch (const nb::python_error& error) {
    const nb::object value = nb::borrow(error.value());
    PyException_SetTraceback(value.ptr(), Py_None);
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(value.ptr())), value.ptr());
  }
  if (PyErr_Occurred() != nullptr) nb::raise_python_error();
}

/// `on_end(error or None)` is called on a thread of the engine when the take has ended. `own`: see ToValue::set_own.
/// `on_copied()` (or None), as TakeOptions::on_copied.
PendingSnapshot async_take(std::shared_ptr<Storage> storage, const PyAppState& app, const PyTakeOptions& take_options,
                           const PyIoOptions& io, nb::object prepare, const nb::object& on_end, nb::object own,
                           const nb::object& on_copied) {
  ToValue values(std::move(prepare), take_options.group);
  values.set_own(std::move(own));
  const AppState state = to_save(app, values, take_options.coordinator.get());
  TakeOptions options = to_engine(take_options, io);
  options.on_end = [report = observer<nb::object>(on_end)](const std::exception_ptr& error) {
    if (!nb::is_alive()) return;
    const nb::gil_scoped_acquire gil;
    report(error ? to_exception(error) : nb::object(nb::none()));
  };
  if (!on_copied.is_none()) {
    options.on_copied = [check = std::make_shared<GilObject>(on_copied)] {
      if (!nb::is_alive()) throw Error(ErrorCode::kCancelled, "the interpreter has ended");
      const nb::gil_scoped_acquire gil;
      call_without_trace(check->get());
    };
  }
  const nb::gil_scoped_release release;
  return Snapshot::async_take(std::move(storage), state, options);
}

void let_wait_staged(const PendingSnapshot& pending,
                     const std::vector<std::pair<std::int32_t, std::uintptr_t>>& streams) {
  std::vector<DeviceStream> all;
  for (const auto& [device, stream] : streams) {
    all.push_back({.device = device, .handle = reinterpret_cast<void*>(stream)});  // NOLINT(performance-no-int-to-ptr)
  }
  pending.let_wait_staged(all);
}

/// False when `seconds` (negative: no limit) have passed. Ctrl-C interrupts the wait, not the take.
bool wait_for(const PendingSnapshot& pending, double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kSlice(100);
  constexpr double kForever = 1e9;
  const bool has_limit = seconds >= 0 && seconds < kForever;
  const auto limit = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                        std::chrono::duration<double>(has_limit ? seconds : 0));
  while (true) {
    bool is_done = false;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(limit - Clock::now());
    {
      const nb::gil_scoped_release release;
      is_done = pending.wait_for(has_limit ? std::clamp(left, std::chrono::milliseconds(0), kSlice) : kSlice);
    }
    if (is_done) return true;
    if (has_limit && Clock::now() >= limit) return false;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }
}

/// How the engine makes Python's objects; `Options` is RestoreOptions or ReadOptions.
template <typename Options>
void set_factories(Options& options, ToValue& keeper, bool weights_only) {
  options.allocate = [&keeper](DType dtype, const Dims& shape) { return allocate_tensor(dtype, shape, keeper); };
  options.decode = [&keeper, weights_only](const std::string& path, const std::string& location, const Value& leaf) {
    return decode_leaf(path, location, leaf, weights_only, keeper);
  };
}

ReplicatedRead replicated_read_of(const std::string& name) {
  if (name == "auto") return ReplicatedRead::kAuto;
  if (name == "direct") return ReplicatedRead::kDirect;
  if (name == "share") return ReplicatedRead::kShare;
  throw Error(ErrorCode::kInvalidArgument, "replicated_read must be 'auto', 'direct' or 'share', not '" + name + "'");
}

/// Restores into the state dicts of `app`. `on_state(index, state_dict)` is called for each key when its data is
/// complete.
nb::tuple restore(const Snapshot& snapshot, const PyAppState& app, bool strict, const std::vector<bool>& exact,
                  bool weights_only, bool keep_going, const nb::object& on_state, const PyIoOptions& io,
                  std::shared_ptr<Coordinator> coordinator, const std::string& replicated_read) {
  ToValue values{nb::none()};
  AppState state;
  RestoreOptions options;
  try {
    options.replicated_read = replicated_read_of(replicated_read);
    for (std::size_t i = 0; i < app.size(); ++i) {
      std::string name = text_of(app[i].first.ptr());
      Value value = values.to_fill(name, app[i].second);
      if (exact[i]) options.exact_keys.push_back(name);
      state.emplace_back(std::move(name), std::move(value));
    }
  } catch (...) {
    refuse_in_flight(coordinator.get(), refuse_restore);
    throw;
  }
  options.io = io.to_engine();
  options.strict = strict;
  options.keep_going = keep_going;
  options.coordinator = std::move(coordinator);
  set_factories(options, values, weights_only);
  options.on_state = [&](std::size_t index, Value&& value) {
    const nb::gil_scoped_acquire gil;
    FromValue translate(values);
    on_state(index, translate.convert(encode_component(state[index].first), std::move(value)));
  };
  RestoreReport report;
  {
    const nb::gil_scoped_release release;
    report = snapshot.restore(state, options);
  }
  const auto to_list = [](const std::vector<std::string>& paths) {
    nb::list list;
    for (const std::string& path : paths) list.append(to_str(path));
    return list;
  };
  nb::list corrupt;
  for (const Corruption& found : report.corrupt) {
    corrupt.append(nb::make_tuple(to_list(found.paths), to_str(found.location),
                                  nb::make_tuple(found.range.begin, found.range.end), found.expected, found.found));
  }
  return nb::make_tuple(to_list(report.missing), to_list(report.unexpected), to_list(report.mismatched), corrupt);
}

nb::object read_object(const Snapshot& snapshot, const nb::str& py_path, const nb::object& target, bool weights_only,
                       const PyIoOptions& io) {
  const std::string path = text_of(py_path.ptr());
  const std::size_t slash = path.find('/');
  const std::string inner = slash == std::string::npos ? path : path.substr(slash + 1);
  ToValue values{nb::none()};
  std::optional<Value> wanted;
  // The target stands for the entry itself: its path is the entry's.
  if (!target.is_none()) wanted = values.to_fill_at(inner, target);
  ReadOptions options;
  options.io = io.to_engine();
  set_factories(options, values, weights_only);
  std::optional<Value> result;
  {
    const nb::gil_scoped_release release;
    result = snapshot.read_object(path, wanted ? &*wanted : nullptr, options);
  }
  return FromValue(values).convert(inner, *std::move(result));
}

nb::object read_state(const Snapshot& snapshot, const nb::str& py_key, std::int64_t rank, bool weights_only,
                      const PyIoOptions& io) {
  const std::string key = text_of(py_key.ptr());
  ToValue values{nb::none()};
  ReadOptions options;
  options.io = io.to_engine();
  set_factories(options, values, weights_only);
  std::optional<Value> result;
  {
    const nb::gil_scoped_release release;
    result = snapshot.read_state(key, rank, options);
  }
  return FromValue(values).convert(encode_component(key), *std::move(result));
}

nb::tuple metadata(const Snapshot& snapshot, bool verify) {
  std::shared_ptr<const SnapshotMetadata> loaded;
  {
    const nb::gil_scoped_release release;
    loaded = snapshot.metadata(verify);
  }
  return metadata_to_python(*loaded);
}

}  // namespace

void bind_snapshot(nb::module_& module) {
  nb::class_<Storage>(module, "Storage", "A place for objects; shared by the snapshots in it.")
      .def_prop_ro(
          "url", [](const Storage& storage) { return to_str(storage.url()); }, nb::sig("def url(self) -> str"));
  module.def(
      "open_plugin_storage",
      [](nb::object bridge, const nb::str& url) { return open_plugin_storage(std::move(bridge), text_of(url.ptr())); },
      nb::arg("bridge"), nb::arg("url"), "Wraps a PluginBridge.");

  nb::class_<PyIoOptions>(module, "IoOptions", "Limits and observers of one operation.")
      .def(nb::init<>())
      .def_rw("memory_budget_bytes", &PyIoOptions::memory_budget_bytes)
      .def_rw("io_concurrency", &PyIoOptions::io_concurrency)
      .def_rw("checksums", &PyIoOptions::checksums)
      .def_rw("on_progress", &PyIoOptions::on_progress, nb::arg().none())
      .def_rw("on_notice", &PyIoOptions::on_notice, nb::arg().none());

  nb::class_<PyTakeOptions>(module, "TakeOptions", "How a take lays out its objects.")
      .def(nb::init<>())
      .def_rw("replicated", &PyTakeOptions::replicated)
      .def_rw("max_chunk_bytes", &PyTakeOptions::max_chunk_bytes)
      .def_rw("max_shard_bytes", &PyTakeOptions::max_shard_bytes)
      .def_rw("slab_bytes", &PyTakeOptions::slab_bytes)
      .def_rw("on_planned", &PyTakeOptions::on_planned, nb::arg().none())
      .def_rw("batching", &PyTakeOptions::batching)
      .def_rw("staging", &PyTakeOptions::staging)
      .def_rw("lazy_user_faults", &PyTakeOptions::lazy_user_faults)
      .def_rw("coordinator", &PyTakeOptions::coordinator, nb::arg().none())
      .def_rw("commit_timeout_seconds", &PyTakeOptions::commit_timeout_seconds)
      .def_rw("group", &PyTakeOptions::group, nb::arg().none());

  nb::class_<Snapshot>(module, "Snapshot", "A handle to a snapshot in a storage.")
      .def(nb::init<std::shared_ptr<Storage>>(), nb::arg("storage"))
      .def("metadata", &metadata, nb::arg("verify"),
           nb::sig("def metadata(self, verify: bool) -> tuple[str, int, dict[str, dict[str, object]]]"),
           "(version, world_size, {path: entry}).")
      .def(
          "restore", &restore, nb::arg("app"), nb::arg("strict"), nb::arg("exact"), nb::arg("weights_only"),
          nb::arg("keep_going"), nb::arg("on_state"), nb::arg("io"), nb::arg("coordinator").none(),
          nb::arg("replicated_read"),
          nb::sig(
              "def restore(self, app: Sequence[tuple[str, object]], strict: bool, exact: Sequence[bool], "
              "weights_only: bool, keep_going: bool, on_state: object, io: IoOptions, coordinator: Coordinator | None, "
              "replicated_read: str) -> tuple[list[str], list[str], list[str], list[tuple[list[str], str, tuple[int, "
              "int], int, int]]]"),
          "Restores; returns (missing, unexpected, mismatched, corrupt).")
      .def("read_object", &read_object, nb::arg("path"), nb::arg("target").none(), nb::arg("weights_only"),
           nb::arg("io"), "One entry or subtree, in place where `target` has tensors.")
      .def("read_state", &read_state, nb::arg("key"), nb::arg("rank"), nb::arg("weights_only"), nb::arg("io"),
           "The tree of one key as a rank sees it.");

  module.def("take", &take, nb::arg("storage"), nb::arg("app"), nb::arg("take_options"), nb::arg("io"),
             nb::arg("prepare").none(), "Takes a snapshot of (key, state dict) pairs.");

  nb::class_<PendingSnapshot>(module, "PendingSnapshot", "A take that goes on by itself.")
      .def("done", &PendingSnapshot::done, nb::call_guard<nb::gil_scoped_release>(), "Whether the take has ended.")
      .def("wait_for", &wait_for, nb::arg("seconds"),
           "Waits until the take has ended, at most so long (negative: without limit); whether it has.")
      .def("wait", &PendingSnapshot::wait, nb::call_guard<nb::gil_scoped_release>(),
           "Waits, and returns the snapshot or raises what ended the take.")
      .def("wait_staged", &PendingSnapshot::wait_staged, nb::call_guard<nb::gil_scoped_release>(),
           "Makes the copies that are left to make.")
      .def(
          "let_wait_staged", &let_wait_staged, nb::arg("streams"), nb::call_guard<nb::gil_scoped_release>(),
          "As wait_staged, but tensors on CUDA devices may be changed by what these streams (device, CUstream) do from "
          "now on.")
      .def("cancel", &PendingSnapshot::cancel, nb::call_guard<nb::gil_scoped_release>(), "Tells the take to stop.");
  module.def("async_take", &async_take, nb::arg("storage"), nb::arg("app"), nb::arg("take_options"), nb::arg("io"),
             nb::arg("prepare").none(), nb::arg("on_end"), nb::arg("own").none(), nb::arg("on_copied").none(),
             nb::sig("def async_take(storage: Storage, app: Sequence[tuple[str, object]], take_options: TakeOptions, "
                     "io: IoOptions, prepare: object | None, on_end: object, own: object | None, "
                     "on_copied: object | None) -> PendingSnapshot"),
             "Fixes what a snapshot of (key, state dict) pairs will hold; the rest goes on by itself.");
  module.def("release_staging_memory", &release_staging_memory, nb::call_guard<nb::gil_scoped_release>(),
             "Gives the buffers that takes have left back to the system, but for 64 MiB.");
}

}  // namespace torchsnapshot::python
