// From a Value tree to containers and leaves with paths, and back.
#pragma once

#include <string>
#include <utility>
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

/// Puts a tree together from its containers and leaves, in any order. A path whose parent is no container, a list
/// with a hole, or a dict that names a child that is not there, is an Error(kCorrupt) that names the path.
/// `root_path` is the path of the result.
Value inflate(const std::string& root_path, std::vector<FlatContainer> containers,
              std::vector<std::pair<std::string, Value>> leaves);

}  // namespace torchsnapshot
