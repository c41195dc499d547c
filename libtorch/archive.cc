#include "libtorch/archive.h"

#include <c10/core/CPUAllocator.h>
#include <caffe2/serialize/inline_container.h>
#include <caffe2/serialize/read_adapter_interface.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <torch/custom_class.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "libtorch/pickle.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/torch.h"

namespace torchsnapshot::libtorch {
namespace {

using caffe2::serialize::PyTorchStreamReader;
using caffe2::serialize::PyTorchStreamWriter;

/// Bytes in an IValue.
struct BytesHolder final : torch::CustomClassHolder {
  explicit BytesHolder(std::string text) : data(std::move(text)) {}
  std::string data;
};

class ArchiveBytes final : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit ArchiveBytes(std::string_view bytes) : bytes_(bytes) {}
  std::size_t size() const override { return bytes_.size(); }
  std::size_t read(std::uint64_t position, void* out, std::size_t count, const char* /*what*/) const override {
    if (position >= bytes_.size()) return 0;
    const std::size_t available = std::min<std::size_t>(count, bytes_.size() - position);
    std::memcpy(out, bytes_.data() + position, available);
    return available;
  }

 private:
  std::string_view bytes_;
};

constexpr std::string_view kZipMagic = "PK\x03\x04";

void check_magic(std::string_view archive) {
  if (!archive.starts_with(kZipMagic)) throw Error(ErrorCode::kCorrupt, "not a torch.save archive");
}

[[noreturn]] void fail(const c10::Error& error) {
  throw Error(ErrorCode::kCorrupt, std::string("the archive is malformed: ") + error.what_without_backtrace());
}

}  // namespace

std::string save_archive(const c10::IValue& value) {
  const Pickled pickled = write_pickle(value);
  std::string archive;
  PyTorchStreamWriter writer([&archive](const void* data, std::size_t size) {
    archive.append(static_cast<const char*>(data), size);
    return size;
  });
  writer.writeRecord("data.pkl", pickled.pickle.data(), pickled.pickle.size());
  writer.writeRecord("byteorder", "little", 6);
  for (std::size_t i = 0; i < pickled.tensors.size(); ++i) {
    const at::Tensor& tensor = pickled.tensors[i];
    writer.writeRecord("data/" + std::to_string(i), tensor.const_data_ptr(), tensor.nbytes());
  }
  writer.writeEndOfFile();
  return archive;
}

std::string save_tensor_archive(const at::Tensor& tensor) {
  try {
    const std::vector<char> bytes = torch::jit::pickle_save(tensor.detach().cpu());
    return {bytes.begin(), bytes.end()};
  } catch (const c10::Error& error) {
    throw Error(ErrorCode::kUnsupported,
                "a tensor of type " + tensor.toString() + " can't be stored: " + error.what_without_backtrace());
  }
}

c10::IValue load_archive(std::string_view archive) {
  check_magic(archive);
  try {
    PyTorchStreamReader reader(std::make_shared<ArchiveBytes>(archive));
    const RecordFn record = [&reader](const std::string& name, std::size_t& size) {
      auto [data, bytes] = reader.getRecord("data/" + name);
      size = bytes;
      return std::move(data);
    };
    if (reader.hasRecord("byteorder")) {
      const auto [order, size] = reader.getRecord("byteorder");
      if (std::string_view(static_cast<const char*>(order.get()), size) != "little") {
        throw Error(ErrorCode::kUnsupported, "the archive was written on a machine with another byte order");
      }
    }
    const auto [data, size] = reader.getRecord("data.pkl");
    return read_pickle({static_cast<const char*>(data.get()), size}, record);
  } catch (const c10::Error& error) {
    fail(error);
  }
}

c10::IValue load_tensor_archive(std::string_view archive) {
  check_magic(archive);
  try {
    return torch::jit::pickle_load(std::vector<char>(archive.begin(), archive.end()));
  } catch (const c10::Error& error) {
    fail(error);
  }
}

std::string python_type_name(const c10::IValue& value) {
  if (value.isNone()) return "builtins.NoneType";
  if (value.isTuple()) return "builtins.tuple";
  if (value.isComplexDouble()) return "builtins.complex";
  if (value.isGenericDict()) return "builtins.dict";
  if (value.isList()) return "builtins.list";
  if (value.isTensor()) return "torch.Tensor";
  if (value.isDevice()) return "torch.device";
  return "builtins.object";
}

c10::IValue to_ivalue(Bytes bytes) {
  return c10::IValue::make_capsule(c10::make_intrusive<BytesHolder>(std::move(bytes.data)));
}

bool is_bytes(const c10::IValue& value) noexcept {
  return value.isCapsule() && dynamic_cast<const BytesHolder*>(value.toCapsule().get()) != nullptr;
}

const std::string& bytes_of(const c10::IValue& value) {
  return static_cast<const BytesHolder*>(value.toCapsule().get())->data;
}

}  // namespace torchsnapshot::libtorch
