#include "state/flatten.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "core/path_codec.h"
#include "core/string_index.h"
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

/// `path` is that of the node; it is the same again afterwards.
void flatten_node(const Value& node, std::string& path, int depth, FlatState& out) {
  check_depth(path, depth);
  const std::size_t own = path.size();
  if (const auto* list = node.get_if<List>()) {
    out.containers.push_back({.path = path, .is_list = true, .ordered = false, .keys = {}});
    for (std::size_t i = 0; i < list->items.size(); ++i) {
      path += '/';
      path += std::to_string(i);
      flatten_node(list->items[i], path, depth + 1, out);
      path.resize(own);
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
      path += '/';
      if (key.text.find_first_of("%/") == std::string::npos) {
        path += key.text;
      } else {
        path += encode_component(key.text);
      }
      flatten_node(child, path, depth + 1, out);
      path.resize(own);
    }
    return;
  }
  out.leaves.push_back({.path = path, .value = &node});
}

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw Error(ErrorCode::kCorrupt, "manifest: entry '" + path + "' " + what);
}

}  // namespace

void flatten(const Value& root, const std::string& root_path, FlatState& out) {
  std::string path = root_path;
  flatten_node(root, path, 0, out);
}

Inflater::Inflater(const std::string& root_path, std::vector<FlatContainer> containers,
                   std::vector<std::string> leaf_paths) {
  nodes_.reserve(containers.size() + leaf_paths.size());
  for (FlatContainer& container : containers) {
    std::string path = container.path;
    nodes_.push_back({.path = std::move(path), .container = std::move(container), .leaf = 0, .children = {}});
  }
  for (std::size_t i = 0; i < leaf_paths.size(); ++i) {
    nodes_.push_back({.path = std::move(leaf_paths[i]), .container = std::nullopt, .leaf = i, .children = {}});
  }
  StringIndex index(nodes_.size());
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    if (!index.add(nodes_[i].path, i)) fail(nodes_[i].path, "is there twice");
  }
  const auto root = index.find(root_path);
  if (!root) fail(root_path, "is not in the manifest");
  root_ = *root;
  std::size_t parent = root_;  // mostly that of the node before, too
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    if (i == root_) continue;
    const std::string_view path = parent_path(nodes_[i].path);
    if (path != nodes_[parent].path) {
      const auto found = index.find(path);
      if (!found) fail(nodes_[i].path, "has no list or dict as its parent");
      parent = *found;
    }
    if (!nodes_[parent].container) fail(nodes_[i].path, "has no list or dict as its parent");
    nodes_[parent].children.push_back(i);
  }
  for (Node& node : nodes_) arrange(node);
  check_depth(root_, 0);
}

void Inflater::arrange(Node& node) {
  if (!node.container) return;
  if (node.container->is_list) {
    arrange_list(node);
  } else {
    arrange_dict(node);
  }
}

void Inflater::arrange_list(Node& node) {
  // Element i goes to place i: paths "list/0", "list/1", …, whatever their order in the manifest.
  std::vector<std::size_t> order(node.children.size());
  for (const std::size_t child : node.children) {
    const std::string& path = nodes_[child].path;
    const std::string_view text = last_component(path);
    std::size_t place = 0;
    const auto [stop, status] = std::from_chars(text.data(), text.data() + text.size(), place);
    if (status != std::errc() || stop != text.data() + text.size() || (text.size() > 1 && text[0] == '0')) {
      fail(path, "is the child of a list, but its name is no index");
    }
    if (place >= order.size()) {
      fail(node.path, "is a list in which elements are missing (found index " + std::string(text) + ")");
    }
    order[place] = child;  // no two have the same index: their paths differ
  }
  node.children = std::move(order);
}

bool Inflater::has_order_of_keys(const Node& node) const {
  const std::vector<Key>& keys = node.container->keys;
  if (keys.size() != node.children.size()) return false;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    // A '%' or '/' would need a look at the escapes; without them a key is its component, and no two paths are equal.
    if (last_component(nodes_[node.children[i]].path) != keys[i].text) return false;
    if (keys[i].text.find('%') != std::string::npos) return false;
  }
  return true;
}

void Inflater::arrange_dict(Node& node) {
  if (has_order_of_keys(node)) return;
  std::unordered_map<std::string, std::size_t> by_key;
  by_key.reserve(node.children.size());
  for (const std::size_t child : node.children) {
    const std::string& path = nodes_[child].path;
    if (!by_key.emplace(decode_component(last_component(path)), child).second) {
      fail(path, "has the same key as a sibling");
    }
  }
  node.children.clear();
  for (const Key& key : node.container->keys) {
    const auto found = by_key.find(key.text);
    if (found == by_key.end()) {
      fail(node.path, "names a child '" + key.text + "' that the manifest does not have");
    }
    node.children.push_back(found->second);
    by_key.erase(found);
  }
  if (!by_key.empty()) fail(node.path, "does not name its child '" + by_key.begin()->first + "'");
}

void Inflater::check_depth(std::size_t index, int depth) const {
  const Node& node = nodes_[index];
  if (depth > kMaxDepth) fail(node.path, "is nested more than " + std::to_string(kMaxDepth) + " levels deep");
  for (const std::size_t child : node.children) check_depth(child, depth + 1);
}

Value Inflater::build(std::vector<Value> leaves) {
  return build_node(root_, leaves);
}

Value Inflater::build_node(std::size_t index, std::vector<Value>& leaves) {
  Node& node = nodes_[index];
  if (!node.container) return std::move(leaves[node.leaf]);
  if (node.container->is_list) {
    List list;
    list.items.reserve(node.children.size());
    for (const std::size_t child : node.children) list.items.push_back(build_node(child, leaves));
    return list;
  }
  Dict dict;
  dict.ordered = node.container->ordered;
  dict.items.reserve(node.children.size());
  for (std::size_t i = 0; i < node.children.size(); ++i) {
    dict.items.emplace_back(std::move(node.container->keys[i]), build_node(node.children[i], leaves));
  }
  return dict;
}

}  // namespace torchsnapshot
