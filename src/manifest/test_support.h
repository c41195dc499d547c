// Shared by the tests of this layer: files of tests/, and random metadata that is valid.
#pragma once

#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "core/path_codec.h"
#include "core/text.h"
#include "manifest/primitive.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot::test {

inline std::filesystem::path tests_dir() {
  return std::filesystem::path(__FILE__).parent_path().parent_path().parent_path() / "tests";
}

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error("no file " + path.string());
  std::ostringstream text;
  text << stream.rdbuf();
  return std::move(text).str();
}

class RandomMetadata {
 public:
  explicit RandomMetadata(unsigned seed) : rng_(seed) {}

  SnapshotMetadata make(std::size_t entries) {
    SnapshotMetadata metadata;
    metadata.version = text(8);
    metadata.world_size = 1 + number(5);
    for (std::size_t i = 0; i < entries; ++i) {
      std::string path = std::to_string(number(metadata.world_size)) + "/key";
      // A number in each path keeps it unique, and sharded tensors of different ranks apart.
      path += std::to_string(i) + "/" + encode_component(text(10));
      metadata.manifest.add(path, entry());
    }
    return metadata;
  }

  std::int64_t number(std::int64_t below) {
    return static_cast<std::int64_t>(rng_() % static_cast<std::uint64_t>(below));
  }
  bool flip() { return number(2) == 0; }

  /// WTF-8, with characters that need escapes. No high surrogate before a low one: JSON reads the pair as one
  /// character.
  std::string text(std::int64_t most) {
    std::string out;
    const std::int64_t length = number(most + 1);
    for (std::int64_t i = 0; i < length; ++i) {
      switch (number(6)) {
        case 0:
          append_utf8(static_cast<char32_t>(number(0x20)), out);
          break;
        case 1:
          append_utf8(static_cast<char32_t>(0x7F + number(0xD800 - 0x7F)), out);
          break;
        case 2:
          append_utf8(static_cast<char32_t>(0x10000 + number(0x100000)), out);
          break;
        case 3:
          append_utf8(static_cast<char32_t>(0xD800 + number(0x400)), out);
          out += '.';
          break;
        default:
          append_utf8(static_cast<char32_t>(0x20 + number(0x5F)), out);
      }
    }
    return out;
  }

  Dims shape(std::int64_t dims) {
    Dims out;
    for (std::int64_t d = 0; d < dims; ++d) out.push_back(number(6));
    return out;
  }

  TensorEntry tensor(DType dtype, Dims dims) {
    TensorEntry entry;
    entry.location = "d" + encode_component(std::to_string(number(1000)) + "/x") + "/" + std::to_string(number(100));
    entry.dtype = dtype;
    const std::uint64_t bytes = dense_bytes(dtype, dims);
    const auto begin = static_cast<std::uint64_t>(number(1'000'000'000'000));
    if (is_quantized(dtype)) {
      entry.serializer = flip() ? kTorchSave : kPerTensorQTensor;
      if (flip()) entry.byte_range = ByteRange{begin, begin + bytes + 16};
    } else {
      entry.serializer = flip() ? kTorchSave : kBufferProtocol;
      if (flip()) entry.byte_range = ByteRange{begin, begin + bytes};
    }
    entry.shape = std::move(dims);
    entry.replicated = flip();
    return entry;
  }

  DType dtype() { return static_cast<DType>(number(static_cast<std::int64_t>(DType::kQInt32) + 1)); }

  Entry entry() {
    switch (number(8)) {
      case 0:
        return tensor(dtype(), shape(number(4)));
      case 1:
        return chunked();
      case 2:
        return sharded(false);
      case 3:
        return sharded(true);
      case 4:
        return ObjectEntry{"o/" + std::to_string(number(100)), std::string(kTorchSave), text(10), flip()};
      case 5:
        return primitive();
      case 6:
        return ListEntry{};
      default:
        return dict();
    }
  }

  std::mt19937_64& rng() { return rng_; }

 private:
  Entry chunked() {
    ChunkedTensorEntry entry;
    entry.dtype = dtype();
    entry.shape = shape(1 + number(3));
    for (std::int64_t row = 0; row < entry.shape[0];) {
      Dims sizes = entry.shape;
      Dims offsets(sizes.size(), 0);
      sizes[0] = std::min(1 + number(3), entry.shape[0] - row);
      offsets[0] = row;
      row += sizes[0];
      entry.chunks.push_back({{offsets, sizes}, tensor(entry.dtype, sizes)});
    }
    std::shuffle(entry.chunks.begin(), entry.chunks.end(), rng_);
    entry.replicated = flip();
    return entry;
  }

  Entry sharded(bool dtensor) {
    ShardedTensorEntry entry;
    const std::int64_t dims = number(4);
    const DType type = dtype();
    for (std::int64_t i = number(4); i > 0; --i) {
      const Dims sizes = shape(dims);
      entry.shards.push_back({{shape(dims), sizes}, tensor(type, sizes)});
    }
    if (!dtensor) return entry;
    std::int64_t ranks = 1;
    for (std::int64_t d = 1 + number(3); d > 0; --d) {
      entry.layout.mesh_shape.push_back(1 + number(3));
      ranks *= entry.layout.mesh_shape.back();
    }
    for (std::int64_t i = 0; i < ranks; ++i) entry.layout.mesh.push_back(number(1000));
    for (std::int64_t d = 0; d < dims; ++d) {
      entry.layout.dim_map.push_back(flip() ? Dims{-1}
                                            : Dims{number(static_cast<std::int64_t>(entry.layout.mesh_shape.size()))});
    }
    return entry;
  }

  Entry primitive() {
    const bool replicated = flip();
    switch (number(5)) {
      case 0:
        return make_primitive_entry(Value(Integer(number(1000) - 500)), replicated);
      case 1:
        return make_primitive_entry(Value(std::bit_cast<double>(rng_())), replicated);
      case 2:
        return make_primitive_entry(Value(flip()), replicated);
      case 3:
        return make_primitive_entry(Value(Bytes{text(20)}), replicated);
      default:
        return make_primitive_entry(Value(text(20)), replicated);
    }
  }

  Entry dict() {
    DictEntry entry;
    entry.ordered = flip();
    for (std::int64_t i = number(5); i > 0; --i) {
      if (flip()) {
        entry.keys.emplace_back(Integer(i - 2));
      } else {
        entry.keys.emplace_back("k" + std::to_string(i) + text(10));
      }
    }
    return entry;
  }

  std::mt19937_64 rng_;
};

}  // namespace torchsnapshot::test
