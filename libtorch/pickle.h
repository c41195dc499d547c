// The subset of Python's pickle that torch.save writes for values which an IValue can hold.
#pragma once

#include <ATen/core/ivalue.h>

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace torchsnapshot::libtorch {

/// Containers within containers that a pickle may have.
inline constexpr std::size_t kMaxPickleDepth = 256;

/// The bytes of record `data/NAME` of the archive, for a tensor's storage.
using RecordFn = std::function<at::DataPtr(const std::string& name, std::size_t& size)>;

/// The value of a pickle, protocol 2 to 5. As load_archive.
c10::IValue read_pickle(std::string_view pickle, const RecordFn& record);

struct Pickled {
  std::string pickle;               ///< protocol 2
  std::vector<at::Tensor> tensors;  ///< contiguous, on the CPU: tensor i belongs into the record `data/i`
};
/// As save_archive.
Pickled write_pickle(const c10::IValue& value);

}  // namespace torchsnapshot::libtorch
