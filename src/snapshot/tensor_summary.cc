// Tensors and objects of a snapshot, one at a time, in bounded memory.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/text.h"
#include "snapshot/stored_tensor.h"
#include "tensor/elements.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/inspect.h"

namespace torchsnapshot {
namespace {

StoredTensor find_tensor(const SnapshotMetadata& metadata, const std::string& path) {
  const std::string found = resolve_entry(metadata, path);
  const Entry& entry = *metadata.manifest.find(found);
  auto tensor = TensorIndex(metadata).find(found, entry);
  if (!tensor) {
    throw Error(ErrorCode::kInvalidArgument,
                "entry " + quote_text(found) + " is no tensor, but of type " + std::string(entry_type_name(entry)));
  }
  return *std::move(tensor);
}

/// Gathers a summary of elements that come in pieces.
class Summarizer {
 public:
  explicit Summarizer(std::size_t first) : wanted_(first) {}

  void add(DType dtype, std::span<const std::byte> bytes) {
    for_each_element(dtype, bytes, [this](auto value) {
      if (first_.size() < wanted_) first_.emplace_back(value);
      count(value);
    });
  }

  void finish(TensorSummary& summary) {
    summary.first = std::move(first_);
    summary.nans = nans_;
    summary.infinities = infinities_;
    summary.zeros = zeros_;
    if (numbers_ == 0) return;
    const auto numbers = static_cast<long double>(numbers_);
    if (element_kind(summary.dtype) == ElementKind::kComplex) {
      summary.mean = std::complex<double>(static_cast<double>(sum_ / numbers), static_cast<double>(sum_im_ / numbers));
      return;
    }
    summary.mean = static_cast<double>(sum_ / numbers);
    if (is_float_) {
      summary.minimum = min_float_;
      summary.maximum = max_float_;
    } else if (is_unsigned_) {
      summary.minimum = min_unsigned_;
      summary.maximum = max_unsigned_;
    } else {
      summary.minimum = min_signed_;
      summary.maximum = max_signed_;
    }
  }

 private:
  void count(double value) {
    is_float_ = true;
    if (std::isnan(value)) {
      ++nans_;
    } else if (std::isinf(value)) {
      ++infinities_;
    } else {
      if (numbers_++ == 0) min_float_ = max_float_ = value;
      min_float_ = std::min(min_float_, value);
      max_float_ = std::max(max_float_, value);
      sum_ += value;
      if (value == 0) ++zeros_;
    }
  }

  void count(std::complex<double> value) {
    if (std::isnan(value.real()) || std::isnan(value.imag())) {
      ++nans_;
    } else if (std::isinf(value.real()) || std::isinf(value.imag())) {
      ++infinities_;
    } else {
      ++numbers_;
      sum_ += value.real();
      sum_im_ += value.imag();
      if (value == std::complex<double>()) ++zeros_;
    }
  }

  void count(std::int64_t value) {
    if (numbers_++ == 0) min_signed_ = max_signed_ = value;
    min_signed_ = std::min(min_signed_, value);
    max_signed_ = std::max(max_signed_, value);
    sum_ += static_cast<long double>(value);
    if (value == 0) ++zeros_;
  }

  void count(std::uint64_t value) {
    is_unsigned_ = true;
    if (numbers_++ == 0) min_unsigned_ = max_unsigned_ = value;
    min_unsigned_ = std::min(min_unsigned_, value);
    max_unsigned_ = std::max(max_unsigned_, value);
    sum_ += static_cast<long double>(value);
    if (value == 0) ++zeros_;
  }

  std::size_t wanted_;
  std::vector<Number> first_;
  std::uint64_t numbers_ = 0;
  std::uint64_t nans_ = 0;
  std::uint64_t infinities_ = 0;
  std::uint64_t zeros_ = 0;
  // Wider than any element, so that a mean neither overflows nor drowns in rounding.
  long double sum_ = 0;
  long double sum_im_ = 0;
  bool is_float_ = false;
  bool is_unsigned_ = false;
  double min_float_ = 0;
  double max_float_ = 0;
  std::int64_t min_signed_ = 0;
  std::int64_t max_signed_ = 0;
  std::uint64_t min_unsigned_ = 0;
  std::uint64_t max_unsigned_ = 0;
};

/// How numpy names a dtype, and whether elements have to be widened for it.
struct NpyType {
  const char* descr = nullptr;
  const char* name = nullptr;
  bool widened = false;
};

NpyType npy_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return {"<f8", "float64"};
    case DType::kFloat32:
      return {"<f4", "float32"};
    case DType::kFloat16:
      return {"<f2", "float16"};
    case DType::kComplex128:
      return {"<c16", "complex128"};
    case DType::kComplex64:
      return {"<c8", "complex64"};
    case DType::kComplex32:
      return {"<c8", "complex64", true};
    case DType::kInt64:
      return {"<i8", "int64"};
    case DType::kInt32:
      return {"<i4", "int32"};
    case DType::kInt16:
      return {"<i2", "int16"};
    case DType::kInt8:
      return {"|i1", "int8"};
    case DType::kUInt64:
      return {"<u8", "uint64"};
    case DType::kUInt32:
      return {"<u4", "uint32"};
    case DType::kUInt16:
    case DType::kBits16:
      return {"<u2", "uint16"};
    case DType::kUInt8:
    case DType::kBits8:
    case DType::kFloat4E2M1FNx2:
      return {"|u1", "uint8"};
    case DType::kBool:
      return {"|b1", "bool"};
    case DType::kBFloat16:
    case DType::kFloat8E4M3FN:
    case DType::kFloat8E4M3FNUZ:
    case DType::kFloat8E5M2:
    case DType::kFloat8E5M2FNUZ:
    case DType::kFloat8E8M0FNU:
      return {"<f4", "float32", true};
    case DType::kQInt8:
    case DType::kQUInt8:
    case DType::kQInt32:
      break;
  }
  throw Error(ErrorCode::kUnsupported, "numpy has no type for " + std::string(dtype_name(dtype)));
}

/// The bytes before the elements: format version 1.0 of numpy.lib.format.
std::string npy_header(const NpyType& type, const Dims& shape) {
  std::string dict = std::string("{'descr': '") + type.descr + "', 'fortran_order': False, 'shape': (";
  for (const std::int64_t size : shape) dict += std::to_string(size) + ",";
  if (shape.size() > 1) dict.pop_back();
  dict += "), }";
  constexpr std::size_t kPrefix = 10;
  constexpr std::size_t kAlignment = 64;
  dict.append((kAlignment - (kPrefix + dict.size() + 1) % kAlignment) % kAlignment, ' ');
  dict += '\n';
  if (dict.size() > 0xFFFF) throw Error(ErrorCode::kUnsupported, "a tensor of so many dimensions has no .npy form");
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(dict.size() & 0xFF);
  header += static_cast<char>(dict.size() >> 8);
  return header + dict;
}

void widen(DType dtype, std::span<const std::byte> in, std::vector<float>& out) {
  out.clear();
  for_each_element(dtype, in, [&out](auto value) {
    if constexpr (std::is_same_v<decltype(value), std::complex<double>>) {
      out.push_back(static_cast<float>(value.real()));
      out.push_back(static_cast<float>(value.imag()));
    } else {
      out.push_back(static_cast<float>(value));
    }
  });
}

}  // namespace

TensorSummary summarize_tensor(const Snapshot& snapshot, const std::string& path, std::size_t first,
                               const IoOptions& io) {
  const auto metadata = snapshot.metadata();
  const StoredTensor tensor = find_tensor(*metadata, path);
  TensorSummary summary;
  summary.dtype = tensor.dtype;
  summary.shape = tensor.shape;
  summary.elements = static_cast<std::uint64_t>(element_count(tensor.shape));
  summary.bytes = tensor.nbytes();
  Summarizer summarizer(first);
  stream_tensor(tensor, *snapshot.storage(), io,
                [&](std::span<const std::byte> bytes) { summarizer.add(tensor.dtype, bytes); });
  summarizer.finish(summary);
  return summary;
}

void read_tensor(const Snapshot& snapshot, const std::string& path, const ByteSink& sink, const IoOptions& io) {
  const auto metadata = snapshot.metadata();
  stream_tensor(find_tensor(*metadata, path), *snapshot.storage(), io, sink);
}

std::string write_npy(const Snapshot& snapshot, const std::string& path, const ByteSink& sink, const IoOptions& io) {
  const auto metadata = snapshot.metadata();
  const StoredTensor tensor = find_tensor(*metadata, path);
  const NpyType type = npy_type(tensor.dtype);
  const std::string header = npy_header(type, tensor.shape);
  // The header goes out with the first elements: a tensor that can't be read leaves no half file.
  bool begun = false;
  const auto begin = [&] {
    if (!std::exchange(begun, true)) sink(std::as_bytes(std::span(header)));
  };
  std::vector<float> wide;
  stream_tensor(tensor, *snapshot.storage(), io, [&](std::span<const std::byte> bytes) {
    begin();
    if (type.widened) {
      widen(tensor.dtype, bytes, wide);
      bytes = std::as_bytes(std::span(wide));
    }
    sink(bytes);
  });
  begin();
  return type.name;
}

void read_serialized(const Snapshot& snapshot, const std::string& path, const ByteSink& sink, const IoOptions& io) {
  const auto metadata = snapshot.metadata();
  const std::string found = resolve_entry(*metadata, path);
  const Entry& entry = *metadata->manifest.find(found);
  std::string location;
  std::optional<ByteRange> range;
  if (const auto* object = std::get_if<ObjectEntry>(&entry)) {
    location = object->location;
  } else {
    const StoredTensor tensor = find_tensor(*metadata, found);
    if (!tensor.is_encoded()) return stream_tensor(tensor, *snapshot.storage(), io, sink);
    if (tensor.pieces.size() != 1) {
      throw Error(ErrorCode::kUnsupported, "entry " + quote_text(found) + " is stored in " +
                                               std::to_string(tensor.pieces.size()) +
                                               " serialized pieces, which can't be put together here");
    }
    location = tensor.pieces.front().tensor.location;
    range = tensor.pieces.front().tensor.byte_range;
  }
  ObjectStream stream(found, location, range, *snapshot.storage(), io);
  for (auto part = stream.next(); !part.empty(); part = stream.next()) sink(part);
}

}  // namespace torchsnapshot
