// From a document to metadata: one reader for JSON and YAML. It checks the form (fields, types, names, ranges of
// numbers); what the values mean together is for validate.h.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/text.h"
#include "manifest/cursor.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot {

/// The fields that entries have. Each means the same in every entry that has it.
enum class Field : std::uint8_t {
  kType,
  kLocation,
  kSerializer,
  kDType,
  kShape,
  kReplicated,
  kByteRange,
  kChunks,
  kShards,
  kMesh,
  kDimMap,
  kObjType,
  kSerializedValue,
  kReadable,
  kKeys,
};

inline constexpr std::array<std::string_view, 15> kFieldNames = {
    "type",       "location",   "serializer",       "dtype",    "shape",
    "replicated", "byte_range", "chunks",           "shards",   "mesh",
    "dim_map",    "obj_type",   "serialized_value", "readable", "keys"};

/// A set of fields.
using FieldSet = std::uint32_t;

template <typename... Fields>
constexpr FieldSet field_set(Fields... fields) {
  return ((FieldSet{1} << static_cast<unsigned>(fields)) | ... | FieldSet{0});
}

enum class EntryKind : std::uint8_t { kTensor, kChunked, kSharded, kDTensor, kObject, kPrimitive, kList, kDict };

/// A type name with the fields that its entries must have, and those that they may have: versions before slabs wrote no
/// byte_range, and `readable` came later than the primitives.
struct EntryType {
  std::string_view name;
  EntryKind kind;
  FieldSet required;
  FieldSet optional = 0;
  PrimitiveType primitive = PrimitiveType::kInt;
};

inline constexpr FieldSet kTensorFields =
    field_set(Field::kLocation, Field::kSerializer, Field::kDType, Field::kShape, Field::kReplicated);
inline constexpr FieldSet kPrimitiveFields = field_set(Field::kSerializedValue, Field::kReplicated);
inline constexpr FieldSet kReadableField = field_set(Field::kReadable);

inline constexpr std::array<EntryType, 13> kEntryTypes = {{
    {"Tensor", EntryKind::kTensor, kTensorFields, field_set(Field::kByteRange)},
    {"int", EntryKind::kPrimitive, kPrimitiveFields, kReadableField, PrimitiveType::kInt},
    {"float", EntryKind::kPrimitive, kPrimitiveFields, kReadableField, PrimitiveType::kFloat},
    {"bool", EntryKind::kPrimitive, kPrimitiveFields, kReadableField, PrimitiveType::kBool},
    {"str", EntryKind::kPrimitive, kPrimitiveFields, kReadableField, PrimitiveType::kStr},
    {"bytes", EntryKind::kPrimitive, kPrimitiveFields, kReadableField, PrimitiveType::kBytes},
    {"object", EntryKind::kObject,
     field_set(Field::kLocation, Field::kSerializer, Field::kObjType, Field::kReplicated)},
    {"dict", EntryKind::kDict, field_set(Field::kKeys)},
    {"OrderedDict", EntryKind::kDict, field_set(Field::kKeys)},
    {"list", EntryKind::kList, 0},
    {"ChunkedTensor", EntryKind::kChunked, field_set(Field::kDType, Field::kShape, Field::kChunks, Field::kReplicated)},
    {"ShardedTensor", EntryKind::kSharded, field_set(Field::kShards)},
    {"DTensor", EntryKind::kDTensor, field_set(Field::kShards, Field::kMesh, Field::kDimMap)},
}};

/// Dimensions of a device mesh are few; deeper nesting is an attack.
inline constexpr std::size_t kMaxMeshDims = 32;

template <typename Cursor>
class MetadataReader {
 public:
  explicit MetadataReader(Cursor& cursor) : cursor_(cursor) {}

  /// The whole document. Throws Error with the place, and the entry where there is one.
  SnapshotMetadata read() {
    enum : unsigned { kVersion = 1, kWorldSize = 2, kManifest = 4 };
    SnapshotMetadata metadata;
    unsigned seen = 0;
    const auto once = [&](unsigned member, std::string_view name) {
      if ((seen & member) != 0) cursor_.fail("top-level key " + quote_text(name) + " appears twice");
      seen |= member;
    };
    cursor_.begin_object();
    for (std::string_view key; cursor_.next_key(key);) {
      if (key == "version") {
        once(kVersion, key);
        metadata.version = cursor_.string();
      } else if (key == "world_size") {
        once(kWorldSize, key);
        metadata.world_size = cursor_.integer();
      } else if (key == "manifest") {
        once(kManifest, key);
        read_manifest(metadata.manifest);
      } else {
        cursor_.fail("unknown top-level key " + quote_text(key));
      }
    }
    if ((seen & kVersion) == 0) cursor_.fail("top-level key 'version' is missing");
    if ((seen & kWorldSize) == 0) cursor_.fail("top-level key 'world_size' is missing");
    if ((seen & kManifest) == 0) cursor_.fail("top-level key 'manifest' is missing");
    cursor_.finish();
    return metadata;
  }

 private:
  /// The fields of one entry, as far as read.
  struct Fields {
    FieldSet seen = 0;
    const EntryType* type = nullptr;
    std::string location;
    std::string serializer;
    std::string obj_type;
    std::string serialized_value;
    std::optional<std::string> readable;
    DType dtype = DType::kFloat32;
    bool replicated = false;
    Dims shape;
    std::optional<ByteRange> byte_range;
    std::vector<ShardEntry> chunks;
    std::vector<ShardEntry> shards;
    MeshLayout layout;
    std::vector<Key> keys;
  };

  void read_manifest(Manifest& manifest) {
    cursor_.begin_object();
    for (std::string_view key; cursor_.next_key(key);) {
      Entry* const entry = manifest.try_emplace(key);
      if (entry == nullptr) cursor_.fail("the manifest has two entries " + quote_text(key));
      try {
        read_entry(*entry);
      } catch (const Error& error) {
        throw error.with_context("entry " + quote_text(std::prev(manifest.end())->first));
      }
    }
  }

  void read_entry(Entry& entry) {
    Fields f;
    constexpr FieldSet kAll = (FieldSet{1} << kFieldNames.size()) - 1;
    read_fields(f, kAll);
    if (f.type == nullptr) cursor_.fail("field 'type' is missing");
    const EntryType& type = *f.type;
    check_fields(f.seen, type);
    switch (type.kind) {
      case EntryKind::kTensor:
        entry = tensor_of(f);
        return;
      case EntryKind::kChunked:
        entry = ChunkedTensorEntry{f.dtype, std::move(f.shape), std::move(f.chunks), f.replicated};
        return;
      case EntryKind::kSharded:
      case EntryKind::kDTensor:
        entry = ShardedTensorEntry{std::move(f.shards), std::move(f.layout)};
        return;
      case EntryKind::kObject:
        entry = ObjectEntry{std::move(f.location), std::move(f.serializer), std::move(f.obj_type), f.replicated};
        return;
      case EntryKind::kPrimitive:
        entry = PrimitiveEntry{type.primitive, std::move(f.serialized_value), std::move(f.readable), f.replicated};
        return;
      case EntryKind::kList:
        entry = ListEntry{};
        return;
      case EntryKind::kDict:
        entry = DictEntry{std::move(f.keys), type.name == "OrderedDict"};
        return;
    }
    throw Error(ErrorCode::kInternal, "unknown kind of entry");
  }

  static TensorEntry tensor_of(Fields& f) {
    return {std::move(f.location), std::move(f.serializer), f.dtype, std::move(f.shape), f.replicated, f.byte_range};
  }

  void check_fields(FieldSet seen, const EntryType& type) const {
    const FieldSet known = type.required | type.optional | field_set(Field::kType);
    if ((type.required & ~seen) == 0 && (seen & ~known) == 0) return;
    for (std::size_t i = 0; i < kFieldNames.size(); ++i) {
      const FieldSet field = FieldSet{1} << i;
      const std::string name = "field '" + std::string(kFieldNames[i]) + "' ";
      if ((type.required & ~seen & field) != 0) cursor_.fail(name + "is missing");
      if ((seen & ~known & field) != 0)
        cursor_.fail(name + "does not belong to an entry of type " + quote_text(type.name));
    }
  }

  /// Reads an object that may have the fields of `allowed`.
  void read_fields(Fields& f, FieldSet allowed) {
    cursor_.begin_object();
    auto expected = kFieldNames.begin();  // writers keep to the order of the fields
    for (std::string_view key; cursor_.next_key(key);) {
      const auto name = expected != kFieldNames.end() && *expected == key
                            ? expected
                            : std::find(kFieldNames.begin(), kFieldNames.end(), key);
      expected = name == kFieldNames.end() ? name : name + 1;
      const auto index = static_cast<std::size_t>(name - kFieldNames.begin());
      const FieldSet bit = name == kFieldNames.end() ? 0 : FieldSet{1} << index;
      if ((bit & allowed) == 0) cursor_.fail("unknown field " + quote_text(key));
      if ((bit & f.seen) != 0) cursor_.fail("field " + quote_text(key) + " appears twice");
      f.seen |= bit;
      try {
        read_field(static_cast<Field>(index), f);
      } catch (const Error& error) {
        throw error.with_context("field '" + std::string(*name) + "'");
      }
    }
  }

  void read_field(Field field, Fields& f) {
    switch (field) {
      case Field::kType:
        f.type = read_type();
        return;
      case Field::kLocation:
        f.location = cursor_.string();
        return;
      case Field::kSerializer:
        f.serializer = cursor_.string();
        return;
      case Field::kDType:
        f.dtype = read_dtype();
        return;
      case Field::kShape:
        f.shape = read_dims();
        return;
      case Field::kReplicated:
        f.replicated = cursor_.boolean();
        return;
      case Field::kByteRange:
        f.byte_range = read_byte_range();
        return;
      case Field::kChunks:
        f.chunks = read_pieces();
        return;
      case Field::kShards:
        f.shards = read_pieces();
        return;
      case Field::kMesh:
        read_mesh(f.layout);
        return;
      case Field::kDimMap:
        cursor_.begin_array();
        while (cursor_.next_element()) f.layout.dim_map.push_back(read_dims());
        return;
      case Field::kObjType:
        f.obj_type = cursor_.string();
        return;
      case Field::kSerializedValue:
        f.serialized_value = cursor_.string();
        return;
      case Field::kReadable:
        if (cursor_.peek() == ValueKind::kNull) {
          cursor_.null();
        } else {
          f.readable = cursor_.string();
        }
        return;
      case Field::kKeys:
        f.keys = read_keys();
        return;
    }
  }

  const EntryType* read_type() {
    const std::string_view name = cursor_.string();
    for (const EntryType& type : kEntryTypes) {
      if (type.name == name) return &type;
    }
    cursor_.fail("unknown entry type " + quote_text(name), ErrorCode::kUnsupported);
  }

  DType read_dtype() {
    const std::string_view name = cursor_.string();
    if (name == dtype_name(last_dtype_)) return last_dtype_;
    const std::optional<DType> dtype = dtype_from_name(name);
    if (!dtype) cursor_.fail("unknown dtype " + quote_text(name), ErrorCode::kUnsupported);
    last_dtype_ = *dtype;
    return *dtype;
  }

  Dims read_dims() {
    scratch_.clear();
    cursor_.begin_array();
    while (cursor_.next_element()) scratch_.push_back(cursor_.integer());
    return {scratch_.begin(), scratch_.end()};
  }

  std::optional<ByteRange> read_byte_range() {
    if (cursor_.peek() == ValueKind::kNull) {
      cursor_.null();
      return std::nullopt;
    }
    const Dims bounds = read_dims();
    if (bounds.size() != 2) {
      cursor_.fail("expected two numbers [begin, end], found " + std::to_string(bounds.size()));
    }
    if (bounds[0] < 0 || bounds[1] < bounds[0]) {
      cursor_.fail("[" + std::to_string(bounds[0]) + ", " + std::to_string(bounds[1]) +
                   "] is no range of bytes: 0 <= begin <= end is needed");
    }
    return ByteRange{static_cast<std::uint64_t>(bounds[0]), static_cast<std::uint64_t>(bounds[1])};
  }

  std::vector<ShardEntry> read_pieces() {
    std::vector<ShardEntry> pieces;
    cursor_.begin_array();
    while (cursor_.next_element()) pieces.push_back(read_piece());
    return pieces;
  }

  ShardEntry read_piece() {
    enum : unsigned { kOffsets = 1, kSizes = 2, kTensor = 4 };
    ShardEntry piece;
    unsigned seen = 0;
    const auto once = [&](unsigned member, std::string_view name) {
      if ((seen & member) != 0) cursor_.fail("field " + quote_text(name) + " appears twice");
      seen |= member;
    };
    cursor_.begin_object();
    for (std::string_view key; cursor_.next_key(key);) {
      if (key == "offsets") {
        once(kOffsets, key);
        piece.box.offsets = read_dims();
      } else if (key == "sizes") {
        once(kSizes, key);
        piece.box.sizes = read_dims();
      } else if (key == "tensor") {
        once(kTensor, key);
        // Only a plain tensor's fields, so that pieces can't be nested in pieces without end.
        constexpr const EntryType& kTensorType = kEntryTypes[0];
        Fields f;
        read_fields(f, kTensorType.required | kTensorType.optional | field_set(Field::kType));
        if (f.type != nullptr && f.type != &kTensorType) cursor_.fail("a piece must be of type 'Tensor'");
        check_fields(f.seen, kTensorType);
        piece.tensor = tensor_of(f);
      } else {
        cursor_.fail("unknown field " + quote_text(key));
      }
    }
    if ((seen & kOffsets) == 0) cursor_.fail("field 'offsets' is missing");
    if ((seen & kSizes) == 0) cursor_.fail("field 'sizes' is missing");
    if ((seen & kTensor) == 0) cursor_.fail("field 'tensor' is missing");
    return piece;
  }

  /// Nested lists of equal lengths; the innermost hold ranks.
  void read_mesh(MeshLayout& layout) {
    Dims shape;
    read_mesh_level(0, shape, layout.mesh);
    layout.mesh_shape = std::move(shape);
  }

  void read_mesh_level(std::size_t level, Dims& shape, Dims& ranks) {
    if (level == kMaxMeshDims) cursor_.fail("nested too deeply");
    std::int64_t count = 0;
    cursor_.begin_array();
    // Lengths are known once the first list of a level is done; -1 until then.
    if (level == shape.size()) shape.push_back(-1);
    while (cursor_.next_element()) {
      ++count;
      const bool is_list = cursor_.peek() == ValueKind::kArray;
      const bool innermost = level + 1 == shape.size();
      // The very first element decides how deep the lists are nested.
      const bool undecided = innermost && count == 1 && shape[level] == -1;
      if (!undecided && is_list == innermost) cursor_.fail("the lists are not nested evenly");
      if (is_list) {
        read_mesh_level(level + 1, shape, ranks);
      } else {
        ranks.push_back(cursor_.integer());
      }
    }
    if (shape[level] == -1) {
      shape[level] = count;
    } else if (shape[level] != count) {
      cursor_.fail("the lists are not of the same length");
    }
  }

  std::vector<Key> read_keys() {
    std::vector<Key> keys;
    cursor_.begin_array();
    while (cursor_.next_element()) {
      switch (cursor_.peek()) {
        case ValueKind::kNumber:
          keys.emplace_back(Integer(cursor_.integer_text()));
          break;
        case ValueKind::kBool:
          // The original flattens a dict with bool keys too, and names the children by str(key).
          keys.emplace_back(cursor_.boolean() ? "True" : "False");
          break;
        default:
          keys.emplace_back(std::string(cursor_.string()));
      }
    }
    keys.shrink_to_fit();
    return keys;
  }

  Cursor& cursor_;
  Dims scratch_;
  DType last_dtype_ = DType::kFloat32;  ///< most often the next one too
};

}  // namespace torchsnapshot
