// A snapshot that Python took, seen from C++: lists it, reads one tensor, prints its mean.
//
// Usage: inspect SNAPSHOT ENTRY    ENTRY: a float32 or float64 tensor, "RANK/KEY/SUB/PATH"
//
// Needs nothing but the torch-free library: no Python, no torch.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "torchsnapshot/snapshot.h"

namespace {

namespace ts = torchsnapshot;

constexpr std::size_t kListed = 20;

/// What of an entry is shown.
struct Line {
  std::string type;
  std::string dtype = "-";
  std::string shape = "-";
  std::uint64_t bytes = 0;
};

std::string shape_text(const ts::Dims& shape) {
  std::string text = "[";
  for (const std::int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

/// Bytes of the pieces, or of the object that holds the entry as a whole.
std::uint64_t bytes_of(const ts::Entry& entry, ts::Storage& storage) {
  std::uint64_t bytes = 0;
  for (const ts::ShardEntry& piece : ts::stored_pieces(entry)) {
    bytes += ts::dense_bytes(piece.tensor.dtype, piece.tensor.shape);
  }
  if (const auto* object = std::get_if<ts::ObjectEntry>(&entry)) {
    bytes += storage.sizes(std::vector{object->location}, {}).front().value_or(0);
  }
  return bytes;
}

Line describe(const ts::Entry& entry, ts::Storage& storage) {
  Line line{.type = std::string(ts::entry_type_name(entry)), .bytes = bytes_of(entry, storage)};
  const auto dense = [&](const auto& tensor) {
    line.dtype = ts::dtype_name(tensor.dtype);
    line.shape = shape_text(tensor.shape);
  };
  if (const auto* tensor = std::get_if<ts::TensorEntry>(&entry)) dense(*tensor);
  if (const auto* chunked = std::get_if<ts::ChunkedTensorEntry>(&entry)) dense(*chunked);
  if (const auto* object = std::get_if<ts::ObjectEntry>(&entry)) line.dtype = object->obj_type;
  if (const auto* value = std::get_if<ts::PrimitiveEntry>(&entry)) {
    line.shape = value->readable.value_or(value->serialized_value);
  }
  return line;
}

void list(const ts::Snapshot& snapshot) {
  const auto metadata = snapshot.metadata();
  std::printf("version %s, world size %lld\n", metadata->version.c_str(), static_cast<long long>(metadata->world_size));
  std::printf("%-40s %-14s %-15s %-20s %14s\n", "entry", "type", "dtype, class", "shape, value", "bytes");
  std::size_t leaves = 0;
  std::size_t tensors = 0;
  std::uint64_t bytes = 0;
  std::set<std::string, std::less<>> objects;
  for (const auto& [path, entry] : metadata->manifest) {
    if (ts::is_container(entry)) continue;
    const Line line = describe(entry, *snapshot.storage());
    if (leaves++ < kListed) {
      std::printf("%-40s %-14s %-15s %-20s %14llu\n", path.c_str(), line.type.c_str(), line.dtype.c_str(),
                  line.shape.c_str(), static_cast<unsigned long long>(line.bytes));
    }
    if (!ts::stored_pieces(entry).empty()) ++tensors;
    bytes += line.bytes;
    for (const std::string_view location : ts::entry_locations(entry)) objects.emplace(location);
  }
  if (leaves > kListed) std::printf("... and %zu more\n", leaves - kListed);
  std::uint64_t stored = 0;
  const std::vector<std::string> locations(objects.begin(), objects.end());
  for (const auto& size : snapshot.storage()->sizes(locations, {})) stored += size.value_or(0);
  std::printf(
      "%zu leaves, %zu of them tensors: %llu bytes; %llu bytes in %zu objects (memory that tensors share is stored "
      "once)\n",
      leaves, tensors, static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(stored), objects.size());
}

template <typename Element>
void summarize(const ts::Snapshot& snapshot, const std::string& path, ts::DType dtype, const ts::Dims& shape) {
  // Our own memory, that the engine fills in place.
  std::vector<Element> elements(static_cast<std::size_t>(ts::element_count(shape)));
  const ts::Value target(ts::TensorView::dense(elements.data(), dtype, shape));
  static_cast<void>(snapshot.read_object(path, &target));

  long double sum = 0;
  for (const Element element : elements) sum += element;
  const auto [min, max] = std::minmax_element(elements.begin(), elements.end());
  std::printf("%s: %zu elements\n", path.c_str(), elements.size());
  if (elements.empty()) return;
  std::printf("mean %.17g\n", static_cast<double>(sum / static_cast<long double>(elements.size())));
  std::printf("min %.17g\n", static_cast<double>(*min));
  std::printf("max %.17g\n", static_cast<double>(*max));
}

void summarize(const ts::Snapshot& snapshot, const std::string& path) {
  const auto metadata = snapshot.metadata();
  const ts::Entry* entry = metadata->manifest.find(path);
  const auto read = [&](const auto& tensor) {
    switch (tensor.dtype) {
      case ts::DType::kFloat32:
        return summarize<float>(snapshot, path, tensor.dtype, tensor.shape);
      case ts::DType::kFloat64:
        return summarize<double>(snapshot, path, tensor.dtype, tensor.shape);
      default:
        throw ts::Error(ts::ErrorCode::kUnsupported, path + " has the dtype " +
                                                         std::string(ts::dtype_name(tensor.dtype)) +
                                                         "; this program sums float32 and float64");
    }
  };
  if (entry == nullptr) throw ts::Error(ts::ErrorCode::kEntryNotFound, "the snapshot has no entry " + path);
  if (const auto* tensor = std::get_if<ts::TensorEntry>(entry)) return read(*tensor);
  if (const auto* chunked = std::get_if<ts::ChunkedTensorEntry>(entry)) return read(*chunked);
  throw ts::Error(ts::ErrorCode::kUnsupported, path + " is no tensor of one rank");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s SNAPSHOT ENTRY\n", argv[0]);
    return 2;
  }
  try {
    const ts::Snapshot snapshot(argv[1]);
    list(snapshot);
    std::printf("\n");
    summarize(snapshot, argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "inspect: %s\n", error.what());
    return 1;
  }
  return 0;
}
