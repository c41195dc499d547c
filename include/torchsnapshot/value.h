// The neutral tree that every face translates its state into, and back.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "torchsnapshot/bytes.h"
#include "torchsnapshot/tensor.h"

namespace torchsnapshot {

class Value;

/// An integer of any size, as canonical decimal text ("-7", "0").
struct Integer {
  std::string decimal = "0";

  Integer() = default;
  Integer(std::int64_t value) : decimal(std::to_string(value)) {}  // NOLINT(google-explicit-constructor)
  explicit Integer(std::string text) : decimal(std::move(text)) {}
  /// The number, or nothing when it does not fit.
  [[nodiscard]] std::optional<std::int64_t> to_int64() const noexcept;
  friend bool operator==(const Integer&, const Integer&) = default;
};

/// Raw bytes kept inside the manifest (Python's `bytes`).
struct Bytes {
  std::string data;
  friend bool operator==(const Bytes&, const Bytes&) = default;
};

/// A key of a dict: text, or an integer of any size (then `text` is its decimal form).
struct Key {
  std::string text;
  bool is_int = false;

  Key(std::string key) : text(std::move(key)) {}                // NOLINT(google-explicit-constructor)
  Key(const char* key) : text(key) {}                           // NOLINT(google-explicit-constructor)
  Key(const Integer& key) : text(key.decimal), is_int(true) {}  // NOLINT(google-explicit-constructor)
  friend bool operator==(const Key&, const Key&) = default;
};

/// Children in order.
struct List {
  std::vector<Value> items;
};

/// Children by key, in insertion order. `ordered` tells an OrderedDict from a dict.
struct Dict {
  std::vector<std::pair<Key, Value>> items;
  bool ordered = false;

  /// The child of that key, or null.
  [[nodiscard]] const Value* find(const Key& key) const noexcept;
  [[nodiscard]] Value* find(const Key& key) noexcept;
};

/// One piece of a global tensor: its place, and the memory that holds it.
struct LocalShard {
  Box box;
  TensorView view;
};

/// How a DTensor lies on its device mesh, as stored in a DTensor entry. Empty mesh_shape: not a
/// DTensor (a ShardedTensor).
struct MeshLayout {
  Dims mesh_shape;
  Dims mesh;                  ///< global ranks, row-major over mesh_shape
  std::vector<Dims> dim_map;  ///< per tensor dimension: the mesh dimensions that shard it, or {-1}
  friend bool operator==(const MeshLayout&, const MeshLayout&) = default;
};

/// A tensor of which this process holds some boxes.
struct ShardedTensor {
  DType dtype = DType::kFloat32;
  Dims shape;  ///< global
  std::vector<LocalShard> shards;
  MeshLayout layout;
  std::shared_ptr<void> owner = nullptr;  ///< the face's object, as in TensorView
  /// For a take: the ranks (of the Coordinator) that hold the same boxes with the same content, this one among them,
  /// ascending. Empty: only this one. The boxes are stored once.
  Dims replicas{};
};

/// A piece of a tensor in a form that only a face can read or make.
struct EncodedPart {
  Box box;
  std::string serializer;
  SharedBytes bytes;
};

/// A tensor that is not stored as plain elements (quantized; complex in old snapshots).
/// To take: one part that covers the whole. From a restore: the parts as stored (or what RestoreOptions::decode made of
/// them, in `owner`), and the leaf of the target, if it has one that fits, for the face to fill.
struct EncodedTensor {
  DType dtype = DType::kFloat32;
  Dims shape;
  std::vector<EncodedPart> parts;
  std::shared_ptr<const Value> target;
  std::shared_ptr<void> owner = nullptr;  ///< the face's object, as in TensorView
};

/// Any other object, as the face serialized it.
struct Opaque {
  std::string serializer;  ///< "torch_save"
  std::string type_name;   ///< "builtins.tuple"; for people
  SharedBytes bytes;
  std::shared_ptr<void> owner = nullptr;  ///< the face's object, as in TensorView
};

/// A node of the tree. Cheap to move.
class Value {
 public:
  using Variant = std::variant<Integer, double, bool, std::string, Bytes, TensorView, ShardedTensor, EncodedTensor,
                               Opaque, List, Dict>;

  /// Implicit, so that trees can be written down as they are.
  template <typename T, typename = std::enable_if_t<!std::is_same_v<std::remove_cvref_t<T>, Value> &&
                                                    std::is_constructible_v<Variant, T&&>>>
  Value(T&& value) : node_(std::forward<T>(value)) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] const Variant& node() const noexcept { return node_; }
  [[nodiscard]] Variant& node() noexcept { return node_; }
  /// The alternative T, or null when the node holds another.
  template <typename T>
  [[nodiscard]] const T* get_if() const noexcept {
    return std::get_if<T>(&node_);
  }
  template <typename T>
  [[nodiscard]] T* get_if() noexcept {
    return std::get_if<T>(&node_);
  }

 private:
  Variant node_;
};

/// What a program saves: a Value tree per key, in the order of the keys.
using AppState = std::vector<std::pair<std::string, Value>>;

}  // namespace torchsnapshot
