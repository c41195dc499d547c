// The part of DLPack's C ABI that lends out a tensor's metadata (dmlc/dlpack, "C exchange API", version 1).
// Declared here so that the extension needs no header of torch's.
#pragma once

#include <cstdint>

namespace torchsnapshot::python::dlpack {

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

struct Device {
  std::int32_t type;
  std::int32_t id;
};
inline constexpr std::int32_t kCpu = 1;
inline constexpr std::int32_t kCudaHost = 3;
inline constexpr std::int32_t kRocmHost = 11;

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

/// Shape and strides belong to the lender and live as long as its tensor.
struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  ///< in elements; null: row-major
  std::uint64_t byte_offset;
};

struct ExchangeApiHeader {
  Version version;
  ExchangeApiHeader* previous;
};

/// The table behind type(tensor).__dlpack_c_exchange_api__, a capsule named kCapsuleName.
struct ExchangeApi {
  ExchangeApiHeader header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object;
  void* managed_tensor_to_py_object;
  /// Lends the metadata of a tensor; 0 on success, else a Python error is set. May be null.
  int (*tensor_from_py_object)(void* object, Tensor* out);
  void* current_work_stream;
};
inline constexpr char kCapsuleName[] = "dlpack_exchange_api";

}  // namespace torchsnapshot::python::dlpack
