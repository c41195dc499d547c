// From a Value tree to containers and leaves with paths, and back.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "torchsnapshot/value.h"

namespace torchsnapshot {

/// A list, dict or OrderedDict without its children.
struct FlatContainer {
  std::string path;
  bool is_list = false;
  bool ordered = false;
  std::vector<Key> keys;  ///< of a dict, in order
};

/// A node that is no container. The value belongs to the tree.
struct FlatLeaf {
  std::string path;
  const Value* value = nullptr;
};

/// A tree taken apart. Parents come before children, children in order.
struct FlatState {
  std::vector<FlatContainer> containers;
  std::vector<FlatLeaf> leaves;
};

/// Takes `root` apart; its own path is `root_path` (encoded), a child's is "parent/component".
/// Appends to `out`. Throws Error(kInvalidArgument) for two keys of a dict that read back alike, and for
/// trees deeper than kMaxDepth.
void flatten(const Value& root, const std::string& root_path, FlatState& out);

/// Deepest nesting that is written or read.
inline constexpr int kMaxDepth = 512;

/// Puts a tree together from its containers and leaves. The shape is checked before any leaf has a value.
class Inflater {
 public:
  /// Containers and leaves in any order; `root_path` is the path of the result. A path whose parent is no container, a
  /// list with a hole, or a dict that does not name exactly its children, is an Error(kCorrupt) that names the path.
  Inflater(const std::string& root_path, std::vector<FlatContainer> containers, std::vector<std::string> leaf_paths);

  /// The tree, with a value for each leaf in the order of `leaf_paths`. Once.
  Value build(std::vector<Value> leaves);

 private:
  /// A container, or a leaf.
  struct Node {
    std::string path;
    std::optional<FlatContainer> container;
    std::size_t leaf = 0;               ///< index of its value, if it is no container
    std::vector<std::size_t> children;  ///< after arrange(): in the order of the list, or of the dict's keys
  };

  void arrange(Node& node);
  void arrange_list(Node& node);
  void arrange_dict(Node& node);
  [[nodiscard]] bool has_order_of_keys(const Node& node) const;
  void check_depth(std::size_t index, int depth) const;
  Value build_node(std::size_t index, std::vector<Value>& leaves);

  std::vector<Node> nodes_;
  std::size_t root_ = 0;
};

}  // namespace torchsnapshot
