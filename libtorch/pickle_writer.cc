#include <bit>
#include <cstdint>
#include <string>
#include <utility>

#include "libtorch/archive.h"
#include "libtorch/pickle.h"
#include "libtorch/pickle_names.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot::libtorch {
namespace {

class Writer {
 public:
  Pickled write(const c10::IValue& value) {
    text() += "\x80\x02";
    put(value, 0);
    text() += '.';
    return std::move(out_);
  }

 private:
  std::string& text() noexcept { return out_.pickle; }

  template <typename T>
  void raw(T number) {
    for (std::size_t i = 0; i < sizeof number; ++i) {
      text() += static_cast<char>(static_cast<unsigned char>(static_cast<std::uint64_t>(number) >> (8 * i)));
    }
  }

  void global(std::string_view module, std::string_view name) {
    (((text() += 'c') += module) += '\n') += name;
    text() += '\n';
  }

  void put_int(std::int64_t number) {
    if (number >= INT32_MIN && number <= INT32_MAX) {
      text() += 'J';
      raw(static_cast<std::int32_t>(number));
      return;
    }
    text() += "\x8a\x08";
    raw(number);
  }

  void put_double(double number) {
    text() += 'G';
    const auto bits = std::bit_cast<std::uint64_t>(number);
    for (int shift = 56; shift >= 0; shift -= 8) text() += static_cast<char>(static_cast<unsigned char>(bits >> shift));
  }

  void put_text(std::string_view value) {
    text() += 'X';
    raw(static_cast<std::uint32_t>(value.size()));
    text() += value;
  }

  /// As Python: _codecs.encode of the text whose characters have the bytes' values.
  void put_bytes(std::string_view value) {
    global("_codecs", "encode");
    std::string utf8;
    for (const char c : value) {
      const auto byte = static_cast<unsigned char>(c);
      if (byte < 0x80) {
        utf8 += c;
      } else {
        utf8 += static_cast<char>(0xC0 | (byte >> 6));
        utf8 += static_cast<char>(0x80 | (byte & 0x3F));
      }
    }
    put_text(utf8);
    put_text("latin1");
    text() += "\x86R";
  }

  template <typename Items>
  void put_tuple(const Items& items, std::size_t depth) {
    text() += '(';
    for (const auto& item : items) put(item, depth + 1);
    text() += 't';
  }

  void put_dims(at::IntArrayRef dims) {
    text() += '(';
    for (const std::int64_t dim : dims) put_int(dim);
    text() += 't';
  }

  void put_tensor(const at::Tensor& tensor) {
    const std::string_view storage = storage_class(tensor.scalar_type());
    if (storage.empty() || tensor.layout() != at::kStrided || tensor.is_quantized() || tensor.is_meta()) {
      throw Error(ErrorCode::kUnsupported, "a tensor of type " + tensor.toString() +
                                               " inside an object can't be serialized; put it in the state on its own");
    }
    const at::Tensor dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous();
    global("torch._utils", "_rebuild_tensor_v2");
    text() += "((";
    put_text("storage");
    global("torch", storage);
    put_text(std::to_string(out_.tensors.size()));
    put_text("cpu");
    put_int(dense.numel());
    text() += "tQ";
    put_int(0);
    put_dims(dense.sizes());
    put_dims(dense.strides());
    text() += "\x89";
    global("collections", "OrderedDict");
    text() += ")RtR";
    out_.tensors.push_back(dense);
  }

  void put(const c10::IValue& value, std::size_t depth) {
    if (depth > kMaxPickleDepth) {
      throw Error(ErrorCode::kUnsupported, "an object is nested more than " + std::to_string(kMaxPickleDepth) +
                                               " levels deep, or contains itself");
    }
    if (value.isNone() || (value.isTensor() && !value.toTensor().defined())) {
      text() += 'N';
    } else if (value.isTensor()) {
      put_tensor(value.toTensor());
    } else if (value.isBool()) {
      text() += value.toBool() ? '\x88' : '\x89';
    } else if (value.isInt()) {
      put_int(value.toInt());
    } else if (value.isDouble()) {
      put_double(value.toDouble());
    } else if (value.isString()) {
      put_text(value.toStringRef());
    } else if (is_bytes(value)) {
      put_bytes(bytes_of(value));
    } else if (value.isComplexDouble()) {
      const c10::complex<double> number = value.toComplexDouble();
      global("__builtin__", "complex");
      put_double(number.real());
      put_double(number.imag());
      text() += "\x86R";
    } else if (value.isDevice()) {
      global("torch", "device");
      put_text(value.toDevice().str());
      text() += "\x85R";
    } else if (value.isTuple()) {
      put_tuple(value.toTupleRef().elements(), depth);
    } else if (value.isList()) {
      text() += "](";
      for (const auto& item : value.toList()) put(item, depth + 1);
      text() += 'e';
    } else if (value.isGenericDict()) {
      text() += "}(";
      for (const auto& item : value.toGenericDict()) {
        put(item.key(), depth + 1);
        put(item.value(), depth + 1);
      }
      text() += 'u';
    } else {
      throw Error(ErrorCode::kUnsupported, "a value of type " + value.tagKind() + " can't be serialized");
    }
  }

  Pickled out_;
};

}  // namespace

Pickled write_pickle(const c10::IValue& value) {
  return Writer().write(value);
}

}  // namespace torchsnapshot::libtorch
