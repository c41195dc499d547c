// A Value tree as Python state.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <vector>

#include "to_value.h"
#include "torchsnapshot/value.h"

namespace torchsnapshot::python {

/// Translates restored trees. Needs the GIL.
class FromValue {
 public:
  /// `targets` made the trees that were restored into, and keeps their tensors alive; it outlives this.
  FromValue(const ToValue& targets, bool weights_only) : targets_(targets), weights_only_(weights_only) {}

  /// The Python object of `value`; `path` (encoded, "key/sub") begins the paths in messages.
  nanobind::object convert(const std::string& path, Value value);

 private:
  nanobind::object convert_node(Value& value);
  nanobind::object convert_view(const TensorView& view);
  nanobind::object convert_encoded(const EncodedTensor& encoded);
  [[nodiscard]] std::string path() const;

  const ToValue& targets_;
  bool weights_only_;
  std::vector<std::string> components_;  // encoded
};

/// Makes torch tensors for restored data that has no target; they are kept alive by `keeper`. Takes the GIL.
TensorView allocate_tensor(DType dtype, const Dims& shape, ToValue& keeper);

}  // namespace torchsnapshot::python
