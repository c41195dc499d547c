#include "coordinator.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "gil_object.h"
#include "text.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/snapshot.h"

namespace nb = nanobind;

namespace torchsnapshot::python {
namespace {

std::string from_bytes(nb::handle object) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(object.ptr(), &data, &size) != 0) nb::raise_python_error();
  return {data, static_cast<std::size_t>(size)};
}

std::vector<std::string> from_list(const nb::object& list) {
  std::vector<std::string> all;
  for (const nb::handle item : list) all.push_back(from_bytes(item));
  return all;
}

/// Runs a call into Python with the GIL. What it raises becomes an Error, so that it can travel to other ranks and is
/// destroyed without the GIL; Ctrl-C stays what it is.
template <typename Call>
auto in_python(const Call& call) {
  const nb::gil_scoped_acquire gil;
  try {
    return call();
  } catch (const nb::python_error& error) {
    if (error.matches(PyExc_KeyboardInterrupt) || error.matches(PyExc_SystemExit)) throw;
    const nb::str text(nb::handle(error.value()));
    throw Error(ErrorCode::kIo, text_of(text.ptr()));
  }
}

/// What the takes of a process group remember.
struct Remembered {
  std::shared_ptr<TakeMemory> memory;
};

/// A GroupCoordinator. Calls take the GIL, and give it up inside torch.
class PyCoordinator final : public Coordinator, private KeyValueStore {
 public:
  PyCoordinator(nb::object object, std::int64_t rank, std::int64_t world_size, std::shared_ptr<Remembered> remembered)
      : object_(std::move(object)), rank_(rank), world_size_(world_size), remembered_(std::move(remembered)) {}

  [[nodiscard]] std::int64_t rank() const override { return rank_; }
  [[nodiscard]] std::int64_t world_size() const override { return world_size_; }

  std::string broadcast(const std::string& bytes) override {
    return in_python([&] { return from_bytes(method("broadcast")(to_bytes(bytes))); });
  }
  std::vector<std::string> all_gather(const std::string& bytes, std::size_t limit) override {
    return in_python([&] { return from_list(method("all_gather")(to_bytes(bytes), limit)); });
  }
  std::vector<std::string> gather(const std::string& bytes) override {
    return in_python([&] { return from_list(method("gather")(to_bytes(bytes))); });
  }
  std::vector<std::uint64_t> all_sum(const std::vector<std::uint64_t>& numbers) override {
    const std::string mine(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(std::uint64_t));
    const std::string sums = in_python([&] { return from_bytes(method("all_sum")(to_bytes(mine))); });
    if (sums.size() != mine.size()) throw Error(ErrorCode::kInternal, "all_sum gave another number of numbers");
    std::vector<std::uint64_t> all(numbers.size());
    std::memcpy(all.data(), sums.data(), sums.size());
    return all;
  }
  std::vector<std::string> gather_within(const std::string& bytes, std::size_t limit) override {
    return in_python([&] { return from_list(method("gather_within")(to_bytes(bytes), limit)); });
  }
  std::vector<std::string> gather_from(const std::vector<std::int64_t>& senders, const std::string& bytes) override {
    return in_python([&] { return from_list(method("gather_from")(senders, to_bytes(bytes))); });
  }
  [[nodiscard]] bool can_hand_round() const override { return true; }
  void hand_round(std::span<const HandedPart> parts) override {
    in_python([&] {
      nb::list owned;
      for (const HandedPart& part : parts) {
        const nb::object memory = nb::steal(PyMemoryView_FromMemory(
            reinterpret_cast<char*>(part.bytes.data()), static_cast<Py_ssize_t>(part.bytes.size()), PyBUF_WRITE));
        if (!memory.is_valid()) nb::raise_python_error();
        owned.append(nb::make_tuple(part.owner, memory));
      }
      method("hand_round")(owned);
    });
  }
  KeyValueStore& store() override { return *this; }
  std::shared_ptr<TakeMemory>& memory() override { return remembered_->memory; }

 private:
  void set(const std::string& key, const std::string& value) override {
    in_python([&] { method("store_set")(key.c_str(), to_bytes(value)); });
  }
  std::optional<std::string> get(const std::string& key) override {
    return in_python([&]() -> std::optional<std::string> {
      const nb::object found = method("store_get")(key.c_str());
      return found.is_none() ? std::nullopt : std::optional(from_bytes(found));
    });
  }
  std::int64_t add(const std::string& key, std::int64_t amount) override {
    return in_python([&] { return nb::cast<std::int64_t>(method("store_add")(key.c_str(), amount)); });
  }
  std::string set_once(const std::string& key, const std::string& value) override {
    return in_python([&] { return from_bytes(method("store_set_once")(key.c_str(), to_bytes(value))); });
  }
  void remove(const std::string& key) override {
    in_python([&] { method("store_remove")(key.c_str()); });
  }

  [[nodiscard]] nb::object method(const char* name) const { return object_.get().attr(name); }

  GilObject object_;
  const std::int64_t rank_;
  const std::int64_t world_size_;
  const std::shared_ptr<Remembered> remembered_;
};

/// An Error of the class that the Python exception has in the engine, or kInternal.
Error to_error(const nb::object& exception) {
  const nb::object code = nb::getattr(exception, "code", nb::none());
  const nb::str text(exception);
  const std::string type = nb::cast<std::string>(nb::str(nb::handle(exception.type()).attr("__name__")));
  ErrorCode found = ErrorCode::kInternal;
  if (nb::isinstance<nb::str>(code)) {
    const auto name = nb::cast<std::string>(code);
    for (int i = 0; i <= static_cast<int>(ErrorCode::kInternal); ++i) {
      if (to_string(static_cast<ErrorCode>(i)) == name) found = static_cast<ErrorCode>(i);
    }
    return {found, text_of(text.ptr())};
  }
  return {found, type + ": " + text_of(text.ptr())};
}

void refuse_quietly(Coordinator& coordinator, const Error& error, void (*refuse)(Coordinator&, const Error&)) {
  const nb::gil_scoped_release release;
  try {
    refuse(coordinator, error);
  } catch (const Error&) {  // the caller raises its own
    return;
  }
}

template <void (*refuse)(Coordinator&, const Error&)>
void refuse_with(Coordinator& coordinator, const nb::object& exception) {
  refuse_quietly(coordinator, to_error(exception), refuse);
}

[[noreturn]] void take(Coordinator& coordinator, const Error& error) {
  refuse_take(coordinator, error);
}

[[noreturn]] void restore(Coordinator& coordinator, const Error& error) {
  refuse_restore(coordinator, error);
}

}  // namespace

void refuse_in_flight(Coordinator* coordinator, void (*refuse)(Coordinator&, const Error&)) {
  if (coordinator == nullptr) return;
  try {
    throw;
  } catch (const Error& error) {
    refuse_quietly(*coordinator, error, refuse);
  } catch (const nb::python_error& error) {
    refuse_quietly(*coordinator, to_error(nb::borrow(error.value())), refuse);
  } catch (const std::exception& error) {
    refuse_quietly(*coordinator, Error(ErrorCode::kInternal, error.what()), refuse);
  }
}

void bind_coordinator(nb::module_& module) {
  const nb::class_<Coordinator> type(module, "Coordinator", "The ranks of a process group.");
  nb::class_<Remembered>(module, "Remembered", "What the takes of a process group remember of their plan.")
      .def(nb::new_([] { return std::make_shared<Remembered>(); }));
  module.def(
      "make_coordinator",
      [](nb::object object, std::int64_t rank, std::int64_t world_size,
         std::shared_ptr<Remembered> remembered) -> std::shared_ptr<Coordinator> {
        return std::make_shared<PyCoordinator>(std::move(object), rank, world_size, std::move(remembered));
      },
      nb::arg("object"), nb::arg("rank"), nb::arg("world_size"), nb::arg("remembered"), "Wraps a GroupCoordinator.");
  module.def(
      "agree_on_url",
      [](Coordinator& coordinator, const nb::str& url) {
        const std::string own = text_of(url.ptr());
        std::string notice;
        std::string agreed;
        {
          const nb::gil_scoped_release release;
          agreed = agree_on_url(coordinator, own, [&notice](const std::string& text) { notice = text; });
        }
        return nb::make_tuple(to_str(agreed), to_str(notice));
      },
      nb::arg("coordinator"), nb::arg("url"),
      nb::sig("def agree_on_url(coordinator: Coordinator, url: str) -> tuple[str, str]"),
      "(rank 0's URL, what there is to say about it). Collective.");
  module.def("refuse_take", &refuse_with<take>, nb::arg("coordinator"), nb::arg("error"),
             "Joins the first exchange of a take with an error, for a rank that failed before.");
  module.def("refuse_restore", &refuse_with<restore>, nb::arg("coordinator"), nb::arg("error"),
             "Joins the exchange of a restore with an error, for a rank that failed before.");
}

}  // namespace torchsnapshot::python
