// IValues ↔ Value trees: all that this face has to translate.
#pragma once

#include <ATen/core/ivalue.h>

#include <cstddef>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "torchsnapshot/torch.h"
#include "torchsnapshot/value.h"

namespace torchsnapshot::libtorch {

/// "a/b/c" of encoded components.
inline std::string join_components(const std::vector<std::string>& components) {
  std::string path;
  for (const std::string& component : components) (path += path.empty() ? "" : "/") += component;
  return path;
}

/// Makes Value trees. Tensors are viewed, not copied; the trees keep them alive.
class ToValue {
 public:
  /// The tree to save under a key of the app state. Throws Error(kUnsupported) that names what can't be saved.
  Value to_save(const std::string& key, const StateDict& state);
  /// The tree to restore into.
  Value to_fill(const std::string& key, const StateDict& state);

  /// Tensors of the targets that are no plain memory, by path: they are filled by a copy.
  using Deferred = std::unordered_map<std::string, at::Tensor>;
  [[nodiscard]] const Deferred& deferred() const noexcept { return deferred_; }

 private:
  enum class Purpose { kSave, kFill };

  Value convert_root(const std::string& key, Purpose purpose, const StateDict& state);
  Value convert(const c10::IValue& value, std::size_t depth);
  Value convert_dict(const c10::IValue& value, std::size_t depth);
  Value convert_tensor(const at::Tensor& tensor);
  Value convert_opaque(const c10::IValue& value);
  [[nodiscard]] std::string path() const;

  Purpose purpose_ = Purpose::kSave;
  std::vector<std::string> components_;  // encoded
  Deferred deferred_;
};

/// Makes IValues of restored trees.
class FromValue {
 public:
  explicit FromValue(const ToValue& targets, PythonObjects python_objects)
      : targets_(targets), python_objects_(python_objects) {}

  /// For RestoreOptions::decode: the object of an encoded leaf.
  std::shared_ptr<void> decode(const std::string& path, const std::string& location, const Value& leaf);
  /// The value at `path` (encoded).
  c10::IValue convert(const std::string& path, const Value& value);
  /// The state of a key. Throws Error(kUnsupported) when it is no dict with text as keys.
  StateDict convert_state(const std::string& key, const Value& value);

  /// Paths of the objects that were left out.
  [[nodiscard]] const std::vector<std::string>& skipped() const noexcept { return skipped_; }

 private:
  c10::IValue convert_node(const Value& value);
  c10::IValue convert_list(const List& list);
  c10::IValue convert_dict(const Dict& dict);
  c10::IValue convert_tensor(const at::Tensor& tensor, const Value* target);
  bool skip(const Key& key, const Value& value);
  [[nodiscard]] std::string path() const;

  const ToValue& targets_;
  PythonObjects python_objects_;
  std::vector<std::string> components_;
  std::vector<std::string> skipped_;
};

}  // namespace torchsnapshot::libtorch
