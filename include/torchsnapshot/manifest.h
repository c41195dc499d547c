// The manifest of a snapshot: what was saved, and where each byte of it is. docs/format.md is the
// byte-level page.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "torchsnapshot/bytes.h"
#include "torchsnapshot/tensor.h"
#include "torchsnapshot/value.h"

namespace torchsnapshot {

/// Name of the object that holds the manifest; its presence is the commit.
inline constexpr std::string_view kMetadataName = ".snapshot_metadata";

/// Serializers, as named in entries.
inline constexpr std::string_view kBufferProtocol = "buffer_protocol";
inline constexpr std::string_view kTorchSave = "torch_save";
inline constexpr std::string_view kPerTensorQTensor = "per_tensor_qtensor";
inline constexpr std::string_view kPerChannelQTensor = "per_channel_qtensor";

/// A dense tensor, or a dense piece of one.
struct TensorEntry {
  std::string location;
  std::string serializer;
  DType dtype = DType::kFloat32;
  Dims shape;
  bool replicated = false;
  std::optional<ByteRange> byte_range;  ///< none: the whole object
  friend bool operator==(const TensorEntry&, const TensorEntry&) = default;
};

/// A piece of a larger tensor: its place in it, and where it is stored (tensor.shape == box.sizes).
struct ShardEntry {
  Box box;
  TensorEntry tensor;
  friend bool operator==(const ShardEntry&, const ShardEntry&) = default;
};

/// A tensor that one rank stored in several pieces.
struct ChunkedTensorEntry {
  DType dtype = DType::kFloat32;
  Dims shape;
  std::vector<ShardEntry> chunks;
  bool replicated = false;
  friend bool operator==(const ChunkedTensorEntry&, const ChunkedTensorEntry&) = default;
};

/// The pieces of a ShardedTensor (layout.mesh_shape empty) or DTensor that one rank stored.
struct ShardedTensorEntry {
  std::vector<ShardEntry> shards;
  MeshLayout layout;
  friend bool operator==(const ShardedTensorEntry&, const ShardedTensorEntry&) = default;
};

/// A serialized object with a storage object of its own.
struct ObjectEntry {
  std::string location;
  std::string serializer;
  std::string obj_type;
  bool replicated = false;
  friend bool operator==(const ObjectEntry&, const ObjectEntry&) = default;
};

enum class PrimitiveType : std::uint8_t { kInt, kStr, kBool, kBytes, kFloat };

/// A value kept inside the manifest, in the textual form of the format.
struct PrimitiveEntry {
  PrimitiveType type = PrimitiveType::kInt;
  std::string serialized_value;
  std::optional<std::string> readable;
  bool replicated = false;
  friend bool operator==(const PrimitiveEntry&, const PrimitiveEntry&) = default;
};

struct ListEntry {
  friend bool operator==(const ListEntry&, const ListEntry&) = default;
};

struct DictEntry {
  std::vector<Key> keys;
  bool ordered = false;
  friend bool operator==(const DictEntry&, const DictEntry&) = default;
};

using Entry = std::variant<TensorEntry, ChunkedTensorEntry, ShardedTensorEntry, ObjectEntry, PrimitiveEntry, ListEntry,
                           DictEntry>;

/// The `type` of an entry as written in the metadata ("ChunkedTensor", "OrderedDict", "int").
std::string_view entry_type_name(const Entry& entry) noexcept;
/// True for list, dict and OrderedDict.
bool is_container(const Entry& entry) noexcept;
/// True when the entry belongs to every rank (containers and sharded entries: false).
bool is_replicated(const Entry& entry) noexcept;
/// Every stored piece of the entry: one for a tensor, the chunks or shards, none for the others.
/// The Box of a plain tensor covers it.
std::vector<ShardEntry> stored_pieces(const Entry& entry);
/// Every location that the entry refers to, in order, repeats included.
std::vector<std::string_view> entry_locations(const Entry& entry);

/// Entries by path "RANK/KEY/SUB/PATH" (components percent-encoded), in the order of the file, with
/// a look-up by path. Entries stay where they are when others are added. Not thread-safe while being changed.
class Manifest {
 public:
  using Item = std::pair<std::string, Entry>;

  /// Appends an entry. Throws Error(kCorrupt) if the path is there already.
  void add(std::string_view path, Entry entry);
  /// Appends an entry for the caller to fill in (now an empty tensor), or returns null if the path is there already.
  Entry* try_emplace(std::string_view path);
  /// Makes room in the look-up table, so that it need not grow on the way to `entries`.
  void reserve(std::size_t entries);
  /// The entry of that path, or null.
  [[nodiscard]] const Entry* find(std::string_view path) const noexcept;
  [[nodiscard]] std::size_t size() const noexcept { return items_.size(); }
  [[nodiscard]] auto begin() const noexcept { return items_.begin(); }
  [[nodiscard]] auto end() const noexcept { return items_.end(); }
  friend bool operator==(const Manifest& a, const Manifest& b) { return a.items_ == b.items_; }

 private:
  /// A place of the look-up table: 1 + index into items_ (0: empty), and the low bits of the path's hash, so that
  /// a probe seldom looks at a path.
  struct Slot {
    std::uint32_t number = 0;
    std::uint32_t hash = 0;
  };

  /// The slot that holds `path`, or the empty one where it would go. There is an empty slot.
  [[nodiscard]] std::size_t slot_of(std::string_view path, std::size_t hash) const noexcept;
  void grow(std::size_t slots);

  std::deque<Item> items_;
  // Open addressing, a power of two of slots, at most three quarters full. A manifest may have millions of entries, and
  // this costs 11 to 21 bytes for each, without a second copy of the path.
  std::vector<Slot> slots_;
};

struct SnapshotMetadata {
  std::string version;
  std::int64_t world_size = 1;
  Manifest manifest;
};

/// Reads metadata, JSON or YAML, and validates every entry (docs/format.md, "Validation").
/// Throws Error(kCorrupt) that names the place or the entry; Error(kUnsupported) for a dtype or serializer that this
/// version doesn't know, and for YAML in a build without it. Allocates no more than a small multiple of the
/// text's size. `text` must be UTF-8. A lone surrogate, written as an escape, becomes WTF-8 (three bytes).
SnapshotMetadata parse_metadata(std::string_view text);

/// Writes metadata as JSON with two spaces of indent, as Python's json.dumps(indent=2) would. The strings are
/// UTF-8 or WTF-8; throws Error(kInvalidArgument) that names the entry if one isn't.
std::string write_metadata(const SnapshotMetadata& metadata);

}  // namespace torchsnapshot
