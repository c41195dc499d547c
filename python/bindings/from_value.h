// A Value tree as Python state.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <string>
#include <vector>

#include "to_value.h"
#include "torchsnapshot/value.h"

namespace torchsnapshot::python {

/// Translates restored trees. Needs the GIL.
class FromValue {
 public:
  /// `targets` made the trees that were restored into, and keeps their tensors and decoded objects alive; it outlives
  /// this.
  explicit FromValue(const ToValue& targets) : targets_(targets), needs_paths_(!targets.deferred().empty()) {}

  /// The Python object of `value`, whose opaque and encoded leaves were decoded (decode_leaf); `path` (encoded,
  /// "key/sub") is its place.
  nanobind::object convert(const std::string& path, Value value);

 private:
  nanobind::object convert_node(Value& value);
  nanobind::object convert_view(const TensorView& view);

  const ToValue& targets_;
  const bool needs_paths_;               ///< to find the deferred ones
  std::vector<std::string> components_;  // encoded
};

/// The engine's DecodeFn: the Python object of an Opaque or EncodedTensor leaf, kept alive by `keeper`. Takes the GIL.
std::shared_ptr<void> decode_leaf(const std::string& path, const std::string& location, const Value& leaf,
                                  bool weights_only, ToValue& keeper);

/// Makes torch tensors for restored data that has no target; they are kept alive by `keeper`. Takes the GIL.
TensorView allocate_tensor(DType dtype, const Dims& shape, ToValue& keeper);

}  // namespace torchsnapshot::python
