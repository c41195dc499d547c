#include "state/flatten.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "core/path_codec.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

void check_depth(std::string_view path, int depth) {
  if (depth > kMaxDepth) {
    throw Error(ErrorCode::kInvalidArgument, "state is nested more than " + std::to_string(kMaxDepth) +
                                                 " levels deep below '" + std::string(path.substr(0, 200)) +
                                                 "'; store the inner part as one object instead");
  }
}

void flatten_node(const Value& node, std::string path, int depth, FlatState& out) {
  check_depth(path, depth);
  if (const auto* list = node.get_if<List>()) {
    out.containers.push_back({.path = path, .is_list = true, .ordered = false, .keys = {}});
    for (std::size_t i = 0; i < list->items.size(); ++i) {
      flatten_node(list->items[i], path + "/" + std::to_string(i), depth + 1, out);
    }
    return;
  }
  if (const auto* dict = node.get_if<Dict>()) {
    FlatContainer container{.path = path, .is_list = false, .ordered = dict->ordered, .keys = {}};
    container.keys.reserve(dict->items.size());
    std::unordered_set<std::string_view> seen;
    seen.reserve(dict->items.size());
    for (const auto& [key, child] : dict->items) {
      if (!seen.insert(key.text).second) {
        throw Error(ErrorCode::kInvalidArgument, "two keys of the dict at '" + path + "' read back as '" + key.text +
                                                     "'; rename one, or store the dict as one object");
      }
      container.keys.push_back(key);
    }
    out.containers.push_back(std::move(container));
    for (const auto& [key, child] : dict->items) {
      flatten_node(child, path + "/" + encode_component(key.text), depth + 1, out);
    }
    return;
  }
  out.leaves.push_back({.path = std::move(path), .value = &node});
}

/// A container or leaf on its way back into a tree.
struct Node {
  std::string path;
  std::optional<FlatContainer> container;
  std::optional<Value> leaf;
  std::vector<std::size_t> children;  // in no order
};

class Inflater {
 public:
  Inflater(const std::string& root_path, std::vector<FlatContainer> containers,
           std::vector<std::pair<std::string, Value>> leaves) {
    nodes_.reserve(containers.size() + leaves.size());
    for (FlatContainer& container : containers) {
      std::string path = container.path;
      nodes_.push_back({std::move(path), std::move(container), std::nullopt, {}});
    }
    for (auto& [path, value] : leaves) nodes_.push_back({std::move(path), std::nullopt, std::move(value), {}});
    index_.reserve(nodes_.size());
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      if (!index_.emplace(nodes_[i].path, i).second) fail(nodes_[i].path, "is there twice");
    }
    const auto root = index_.find(root_path);
    if (root == index_.end()) fail(root_path, "is not in the manifest");
    root_ = root->second;
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      if (i != root_) parent_of(nodes_[i].path).children.push_back(i);
    }
  }

  Value build() { return build(root_, 0); }

 private:
  [[noreturn]] static void fail(const std::string& path, const std::string& what) {
    throw Error(ErrorCode::kCorrupt, "manifest: entry '" + path + "' " + what);
  }

  Node& parent_of(const std::string& path) {
    const auto found = index_.find(parent_path(path));
    if (found == index_.end() || !nodes_[found->second].container) fail(path, "has no list or dict as its parent");
    return nodes_[found->second];
  }

  Value build(std::size_t index, int depth) {
    Node& node = nodes_[index];
    if (depth > kMaxDepth) fail(node.path, "is nested more than " + std::to_string(kMaxDepth) + " levels deep");
    if (node.leaf) return *std::move(node.leaf);
    return node.container->is_list ? build_list(node, depth) : build_dict(node, depth);
  }

  Value build_list(Node& node, int depth) {
    // Element i goes to place i: paths "list/0", "list/1", …, whatever their order in the manifest.
    std::vector<std::size_t> order(node.children.size(), nodes_.size());
    for (const std::size_t child : node.children) {
      const std::string& path = nodes_[child].path;
      const std::string_view text = last_component(path);
      std::size_t place = 0;
      const auto [stop, status] = std::from_chars(text.data(), text.data() + text.size(), place);
      if (status != std::errc() || stop != text.data() + text.size() || (text.size() > 1 && text[0] == '0')) {
        fail(path, "is the child of a list, but its name is no index");
      }
      if (place >= order.size())
        fail(node.path, "is a list in which elements are missing (found index " + std::string(text) + ")");
      order[place] = child;
    }
    List list;
    list.items.reserve(order.size());
    for (const std::size_t child : order) list.items.push_back(build(child, depth + 1));
    return list;
  }

  Value build_dict(Node& node, int depth) {
    std::unordered_map<std::string, std::size_t> by_key;
    by_key.reserve(node.children.size());
    for (const std::size_t child : node.children) {
      const std::string& path = nodes_[child].path;
      if (!by_key.emplace(decode_component(last_component(path)), child).second) {
        fail(path, "has the same key as a sibling");
      }
    }
    Dict dict;
    dict.ordered = node.container->ordered;
    dict.items.reserve(node.container->keys.size());
    for (Key& key : node.container->keys) {
      const auto found = by_key.find(key.text);
      if (found == by_key.end()) {
        fail(node.path, "names a child '" + key.text + "' that the manifest does not have");
      }
      const std::size_t child = found->second;
      by_key.erase(found);
      dict.items.emplace_back(std::move(key), build(child, depth + 1));
    }
    if (!by_key.empty()) fail(node.path, "does not name its child '" + by_key.begin()->first + "'");
    return dict;
  }

  std::vector<Node> nodes_;
  std::unordered_map<std::string_view, std::size_t> index_;  // views of the nodes' paths
  std::size_t root_ = 0;
};

}  // namespace

void flatten(const Value& root, const std::string& root_path, FlatState& out) {
  flatten_node(root, root_path, 0, out);
}

Value inflate(const std::string& root_path, std::vector<FlatContainer> containers,
              std::vector<std::pair<std::string, Value>> leaves) {
  return Inflater(root_path, std::move(containers), std::move(leaves)).build();
}

}  // namespace torchsnapshot
