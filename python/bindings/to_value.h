// Python state as a Value tree.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "torchsnapshot/value.h"

namespace torchsnapshot::python {

/// Translates one app_state's objects. Holds references to all that the Values point into: it must outlive them, and be
/// destroyed with the GIL held. All functions need the GIL.
class ToValue {
 public:
  /// `prepare` (None or callable): _custom_tensor_prepare_func of take. `group`: the process group whose ranks take.
  explicit ToValue(nanobind::object prepare, nanobind::object group = nanobind::none());

  /// From now on to_save asks `own(tensor, path)` for each tensor on a CUDA device, and each contiguous CPU tensor of
  /// kLargeBytes or more: an object that
  /// keeps the tensor's memory as long as it lives, which the view will own, or None.
  void set_own(nanobind::object own) { own_ = std::move(own); }
  static constexpr std::uint64_t kLargeBytes = 2ULL << 20;

  /// What is to be saved under `key`: every leaf with its content.
  Value to_save(const std::string& key, nanobind::handle object);
  /// What is to be restored into: tensors as they are, other leaves only by kind.
  Value to_fill(const std::string& key, nanobind::handle object);
  /// The same for an entry by its (encoded) path.
  Value to_fill_at(const std::string& path, nanobind::handle object);

  /// Tensors of to_fill that the engine can't write to where they lie (conj views, …), by path: a restored tensor
  /// is copied into them afterwards. References are borrowed from the keep-alive list.
  [[nodiscard]] const std::unordered_map<std::string, PyObject*>& deferred() const noexcept { return deferred_; }
  /// Keeps an object alive as long as this.
  void keep(nanobind::object object) { keep_alive_.push_back(std::move(object)); }

 private:
  enum class Purpose { kSave, kFill };

  Value convert_root(const std::string& path, Purpose purpose, nanobind::handle object);
  Value convert(PyObject* object, int depth);
  Value convert_tensor(PyObject* tensor);
  Value convert_special_tensor(PyObject* tensor);
  Value convert_sharded(PyObject* tensor);
  Value convert_dict(PyObject* dict, bool ordered, int depth);
  Value convert_opaque(PyObject* object);
  [[nodiscard]] std::string path() const;
  void own(PyObject* tensor, TensorView& view) const;

  Purpose purpose_ = Purpose::kSave;
  nanobind::object prepare_;
  nanobind::object own_ = nanobind::none();
  nanobind::object group_;
  /// A step on the way to the node in hand: a dict's key, or a list's index. Text is made of it only when somebody asks
  /// for the path: most leaves never do.
  struct Step {
    const Key* key;  ///< null: `index` counts
    std::size_t index;
  };

  std::string root_;  // path of the root, encoded
  std::vector<Step> steps_;
  std::vector<nanobind::object> keep_alive_;
  std::unordered_map<std::string, PyObject*> deferred_;
};

}  // namespace torchsnapshot::python
