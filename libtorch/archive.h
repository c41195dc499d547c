// Archives as torch.save writes them: a zip file with a pickle in it. Python reads ours with weights_only=True.
#pragma once

#include <ATen/core/ivalue.h>

#include <string>
#include <string_view>

namespace torchsnapshot::libtorch {

/// The value as an archive; equal values without tensors give equal bytes. Lists, tuples, dicts, None, numbers, text,
/// bytes, complex numbers, devices and tensors. Throws Error(kUnsupported) that names the type for anything else.
std::string save_archive(const c10::IValue& value);
/// The same for a tensor that is not plain memory (quantized, sparse).
std::string save_tensor_archive(const at::Tensor& tensor);

/// The value of an archive. Throws Error(kUnsupported) that names the Python class when it can't be made in C++, and
/// Error(kCorrupt) for malformed bytes. Runs no code that the archive names.
c10::IValue load_archive(std::string_view archive);
/// The tensor of an archive that holds nothing else.
c10::IValue load_tensor_archive(std::string_view archive);

/// Name of the Python type that the value is saved as, for people: "builtins.tuple".
std::string python_type_name(const c10::IValue& value);

/// True for an IValue made by to_ivalue(Bytes).
bool is_bytes(const c10::IValue& value) noexcept;
const std::string& bytes_of(const c10::IValue& value);

}  // namespace torchsnapshot::libtorch
