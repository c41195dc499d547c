// The manifest as JSON, byte for byte as Python's json.dumps(metadata, indent=2) prints the original's dataclasses,
// with one exception: characters above U+FFFF are written as they are, because the original's reader (a YAML parser)
// takes them so, but not as escaped surrogate pairs.
#include <array>
#include <charconv>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/text.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot {
namespace {

constexpr std::string_view kHex = "0123456789abcdef";

/// True for the bytes that stand for themselves in a JSON string of ASCII.
constexpr std::array<bool, 256> kPlain = [] {
  std::array<bool, 256> table{};
  for (std::size_t c = 0x20; c < 0x7F; ++c) table[c] = c != '"' && c != '\\';
  return table;
}();

/// Prints values at the current place; objects and arrays open a level of indent.
class JsonPrinter {
 public:
  explicit JsonPrinter(std::string& out) : out_(out) {}

  void open(char bracket) {
    out_ += bracket;
    ++depth_;
    first_ = true;
  }

  void close(char bracket) {
    --depth_;
    if (!first_) new_line();
    first_ = false;
    out_ += bracket;
  }

  /// Begins the next element of an array.
  void element() {
    if (!first_) out_ += ',';
    first_ = false;
    new_line();
  }

  /// Begins the next member of an object.
  void key(std::string_view name) {
    element();
    string(name);
    out_ += ": ";
  }

  void raw(std::string_view text) { out_ += text; }
  void boolean(bool value) { out_ += value ? "true" : "false"; }

  template <std::integral T>
  void integer(T value) {
    std::array<char, 24> buffer{};
    const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr;
    out_.append(buffer.data(), end);
  }

  void string(std::string_view text) {
    out_ += '"';
    std::size_t begin = 0;
    for (std::size_t at = 0; at < text.size();) {
      if (kPlain[static_cast<std::uint8_t>(text[at])]) {
        ++at;
        continue;
      }
      out_ += text.substr(begin, at - begin);
      at += escape(text, at);
      begin = at;
    }
    out_ += text.substr(begin);
    out_ += '"';
  }

 private:
  void new_line() {
    out_ += '\n';
    out_.append(2 * depth_, ' ');
  }

  /// Prints the character at text[at], which is not plain; gives its length in the text.
  std::size_t escape(std::string_view text, std::size_t at) {
    switch (text[at]) {
      case '"':
        return short_escape('"');
      case '\\':
        return short_escape('\\');
      case '\n':
        return short_escape('n');
      case '\r':
        return short_escape('r');
      case '\t':
        return short_escape('t');
      case '\f':
        return short_escape('f');
      case '\b':
        return short_escape('b');
      default:
        break;
    }
    const std::size_t length = utf8_sequence(text, at, Surrogates::kAccept);
    if (length == 0) throw Error(ErrorCode::kInvalidArgument, "string " + quote_text(text) + " is not UTF-8");
    const char32_t code_point = decode_utf8(text, at, length);
    if (code_point < 0x10000) {
      unit(code_point);
    } else {
      out_ += text.substr(at, length);
    }
    return length;
  }

  std::size_t short_escape(char letter) {
    out_ += '\\';
    out_ += letter;
    return 1;
  }

  void unit(char32_t value) {
    out_ += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) out_ += kHex[(value >> shift) & 15];
  }

  std::string& out_;
  std::size_t depth_ = 0;
  bool first_ = true;
};

class MetadataWriter {
 public:
  explicit MetadataWriter(std::string& out) : json_(out) {}

  void write(const SnapshotMetadata& metadata) {
    json_.open('{');
    member("version", metadata.version);
    json_.key("world_size");
    json_.integer(metadata.world_size);
    json_.key("manifest");
    json_.open('{');
    for (const auto& [path, entry] : metadata.manifest) {
      try {
        json_.key(path);
        json_.open('{');
        member("type", entry_type_name(entry));
        std::visit([this](const auto& e) { fields(e); }, entry);
        json_.close('}');
      } catch (const Error& error) {
        throw error.with_context("writing the manifest entry " + quote_text(path));
      }
    }
    json_.close('}');
    json_.close('}');
  }

 private:
  void member(std::string_view name, std::string_view value) {
    json_.key(name);
    json_.string(value);
  }

  void member(std::string_view name, bool value) {
    json_.key(name);
    json_.boolean(value);
  }

  void member(std::string_view name, std::span<const std::int64_t> dims) {
    json_.key(name);
    integers(dims);
  }

  void integers(std::span<const std::int64_t> values) {
    json_.open('[');
    for (const std::int64_t value : values) {
      json_.element();
      json_.integer(value);
    }
    json_.close(']');
  }

  void fields(const TensorEntry& e) {
    member("location", std::string_view(e.location));
    member("serializer", std::string_view(e.serializer));
    member("dtype", dtype_name(e.dtype));
    member("shape", e.shape);
    member("replicated", e.replicated);
    json_.key("byte_range");
    if (!e.byte_range) {
      json_.raw("null");
      return;
    }
    json_.open('[');
    json_.element();
    json_.integer(e.byte_range->begin);
    json_.element();
    json_.integer(e.byte_range->end);
    json_.close(']');
  }

  void fields(const ChunkedTensorEntry& e) {
    member("dtype", dtype_name(e.dtype));
    member("shape", e.shape);
    pieces("chunks", e.chunks);
    member("replicated", e.replicated);
  }

  void fields(const ShardedTensorEntry& e) {
    pieces("shards", e.shards);
    if (e.layout.mesh_shape.empty()) return;
    json_.key("mesh");
    mesh(e.layout.mesh_shape, e.layout.mesh);
    json_.key("dim_map");
    json_.open('[');
    for (const Dims& dims : e.layout.dim_map) {
      json_.element();
      integers(dims);
    }
    json_.close(']');
  }

  void fields(const ObjectEntry& e) {
    member("location", std::string_view(e.location));
    member("serializer", std::string_view(e.serializer));
    member("obj_type", std::string_view(e.obj_type));
    member("replicated", e.replicated);
  }

  void fields(const PrimitiveEntry& e) {
    member("serialized_value", std::string_view(e.serialized_value));
    member("replicated", e.replicated);
    json_.key("readable");
    if (e.readable) {
      json_.string(*e.readable);
    } else {
      json_.raw("null");
    }
  }

  void fields(const ListEntry&) {}

  void fields(const DictEntry& e) {
    json_.key("keys");
    json_.open('[');
    for (const Key& key : e.keys) {
      json_.element();
      if (key.is_int) {
        json_.raw(key.text);
      } else {
        json_.string(key.text);
      }
    }
    json_.close(']');
  }

  void pieces(std::string_view name, const std::vector<ShardEntry>& pieces) {
    json_.key(name);
    json_.open('[');
    for (const ShardEntry& piece : pieces) {
      json_.element();
      json_.open('{');
      member("offsets", piece.box.offsets);
      member("sizes", piece.box.sizes);
      json_.key("tensor");
      json_.open('{');
      member("type", std::string_view("Tensor"));
      fields(piece.tensor);
      json_.close('}');
      json_.close('}');
    }
    json_.close(']');
  }

  /// Nested lists of `shape` from row-major `ranks`.
  void mesh(std::span<const std::int64_t> shape, std::span<const std::int64_t> ranks) {
    if (shape.size() == 1) {
      integers(ranks);
      return;
    }
    json_.open('[');
    const auto rows = static_cast<std::size_t>(shape[0]);
    for (std::size_t row = 0; row < rows; ++row) {
      json_.element();
      const std::size_t size = ranks.size() / rows;
      mesh(shape.subspan(1), ranks.subspan(row * size, size));
    }
    json_.close(']');
  }

  JsonPrinter json_;
};

/// About as many bytes as the entry will take. Memory reserved and not used costs nothing, growing by copies does.
std::size_t estimated_size(const std::string& path, const Entry& entry) {
  constexpr std::size_t kTensorBytes = 300;
  constexpr std::size_t kPieceBytes = 500;
  constexpr std::size_t kDimBytes = 32;
  const auto pieces_size = [](const std::vector<ShardEntry>& pieces) {
    std::size_t size = 0;
    for (const ShardEntry& piece : pieces) {
      size += kPieceBytes + piece.tensor.location.size() + 3 * kDimBytes * piece.tensor.shape.size();
    }
    return size;
  };
  std::size_t size = kTensorBytes + path.size();
  if (const auto* tensor = std::get_if<TensorEntry>(&entry)) {
    size += tensor->location.size() + kDimBytes * tensor->shape.size();
  } else if (const auto* chunked = std::get_if<ChunkedTensorEntry>(&entry)) {
    size += pieces_size(chunked->chunks);
  } else if (const auto* sharded = std::get_if<ShardedTensorEntry>(&entry)) {
    size += pieces_size(sharded->shards);
  } else if (const auto* object = std::get_if<ObjectEntry>(&entry)) {
    size += object->location.size() + object->obj_type.size();
  } else if (const auto* primitive = std::get_if<PrimitiveEntry>(&entry)) {
    size += primitive->serialized_value.size();
  } else if (const auto* dict = std::get_if<DictEntry>(&entry)) {
    for (const Key& key : dict->keys) size += kDimBytes + key.text.size();
  }
  return size;
}

}  // namespace

std::string write_metadata(const SnapshotMetadata& metadata) {
  std::string out;
  std::size_t size = 256;
  for (const auto& [path, entry] : metadata.manifest) size += estimated_size(path, entry);
  out.reserve(size);
  MetadataWriter(out).write(metadata);
  return out;
}

}  // namespace torchsnapshot
