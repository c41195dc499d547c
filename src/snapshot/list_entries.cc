// The manifest as a tree, for people.
#include <algorithm>
#include <cstdlib>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "core/path_codec.h"
#include "manifest/rank_view.h"
#include "snapshot/stored_tensor.h"
#include "storage/location.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/inspect.h"

namespace torchsnapshot {
namespace {

std::uint64_t size_of(const LocationSizes& sizes, const std::string& location) {
  const auto found = sizes.find(location);
  return found == sizes.end() ? 0 : found->second;
}

std::uint64_t stored_bytes(const TensorEntry& tensor, const LocationSizes& sizes) {
  if (tensor.byte_range) return tensor.byte_range->size();
  if (tensor.serializer == kBufferProtocol) return dense_bytes(tensor.dtype, tensor.shape);
  return size_of(sizes, tensor.location);
}

std::optional<DType> dtype_of(const Entry& entry) {
  if (const auto* tensor = std::get_if<TensorEntry>(&entry)) return tensor->dtype;
  if (const auto* chunked = std::get_if<ChunkedTensorEntry>(&entry)) return chunked->dtype;
  const auto* sharded = std::get_if<ShardedTensorEntry>(&entry);
  return sharded != nullptr && !sharded->shards.empty() ? std::optional(sharded->shards.front().tensor.dtype)
                                                        : std::nullopt;
}

/// Everything of the entry that needs no other entry.
EntryInfo describe(const std::string& path, const Entry& entry, const LocationSizes& sizes) {
  EntryInfo info;
  info.path = path;
  info.type = entry_type_name(entry);
  info.level = static_cast<std::size_t>(std::count(path.begin(), path.end(), '/'));
  info.replicated = is_replicated(entry);
  info.container = is_container(entry);
  if (info.container) return info;
  info.leaves = 1;
  if (const auto* primitive = std::get_if<PrimitiveEntry>(&entry)) info.value = primitive_text(*primitive);
  if (const auto* object = std::get_if<ObjectEntry>(&entry)) {
    info.value = object->obj_type;
    info.serializer = object->serializer;
    info.bytes = size_of(sizes, object->location);
  }
  const std::vector<ShardEntry> pieces = stored_pieces(entry);
  info.pieces = pieces.size();
  for (const ShardEntry& piece : pieces) {
    info.bytes += stored_bytes(piece.tensor, sizes);
    info.serializer = piece.tensor.serializer;
  }
  info.dtype = dtype_of(entry);
  if (const auto* tensor = std::get_if<TensorEntry>(&entry)) info.shape = tensor->shape;
  if (const auto* chunked = std::get_if<ChunkedTensorEntry>(&entry)) info.shape = chunked->shape;
  return info;
}

class Tree {
 public:
  Tree(const SnapshotMetadata& metadata, const LocationSizes& sizes, const ListOptions& options)
      : options_(options), filter_(options.patterns), tensors_(metadata) {
    for (const auto& [path, entry] : metadata.manifest) {
      const std::int64_t rank = split_rank(path).first;
      if (options.rank && *options.rank != rank) continue;
      if (!is_container(entry) && !is_wanted(path, entry)) continue;
      add(path, entry, sizes);
    }
    for (Node& node : nodes_) arrange(node);
  }

  std::vector<EntryInfo> flatten() {
    std::vector<EntryInfo> lines;
    for (const std::size_t rank : ranks_) total(rank);
    for (const std::size_t rank : ranks_) append(rank, lines);
    return lines;
  }

 private:
  struct Node {
    EntryInfo info;
    const Entry* entry = nullptr;       // null for a rank
    std::vector<std::size_t> children;  // in nodes_
    bool wanted = false;                // by itself, as a container
  };

  bool is_wanted(const std::string& path, const Entry& entry) const {
    const auto& dtypes = options_.dtypes;
    if (!dtypes.empty()) {
      const auto dtype = dtype_of(entry);
      if (!dtype || std::find(dtypes.begin(), dtypes.end(), *dtype) == dtypes.end()) return false;
    }
    return filter_.matches(path);
  }

  void add(const std::string& path, const Entry& entry, const LocationSizes& sizes) {
    const std::size_t index = node_of(path);
    nodes_[index].entry = &entry;
    nodes_[index].info = describe(path, entry, sizes);
    nodes_[index].wanted = is_container(entry) && options_.dtypes.empty() && filter_.matches(path);
    if (std::holds_alternative<ShardedTensorEntry>(entry)) nodes_[index].info.shape = shape_of(path, entry);
  }

  Dims shape_of(const std::string& path, const Entry& entry) const {
    try {
      return tensors_.find(path, entry)->shape;
    } catch (const Error&) {  // no rank has a shard: no shape to show
      return {};
    }
  }

  /// The node of that path, made with those above it.
  std::size_t node_of(const std::string& path) {
    if (const auto found = index_.find(path); found != index_.end()) return found->second;
    const std::size_t index = nodes_.size();
    nodes_.emplace_back();
    nodes_[index].info.path = path;
    nodes_[index].info.level = static_cast<std::size_t>(std::count(path.begin(), path.end(), '/'));
    index_.emplace(path, index);
    if (nodes_[index].info.level == 0) {
      nodes_[index].info.type = "rank";
      nodes_[index].info.container = true;
      ranks_.push_back(index);
    } else {
      const std::size_t parent = node_of(std::string(parent_path(path)));
      nodes_[parent].children.push_back(index);
    }
    return index;
  }

  /// Children as they were in the program: in the order of the dict's keys, of the list's indices.
  void arrange(Node& node) {
    if (node.entry == nullptr) return;
    std::unordered_map<std::string, std::size_t> place;
    if (const auto* dict = std::get_if<DictEntry>(node.entry)) {
      for (const Key& key : dict->keys) place.emplace(encode_component(key.text), place.size());
    }
    const bool is_list = std::holds_alternative<ListEntry>(*node.entry);
    std::vector<std::pair<std::size_t, std::size_t>> order;  // place, child
    order.reserve(node.children.size());
    for (const std::size_t child : node.children) {
      const std::string name(last_component(nodes_[child].info.path));
      const auto found = place.find(name);
      order.emplace_back(
          is_list ? std::strtoull(name.c_str(), nullptr, 10) : (found == place.end() ? place.size() : found->second),
          child);
    }
    std::stable_sort(order.begin(), order.end(), [](const auto& x, const auto& y) { return x.first < y.first; });
    for (std::size_t i = 0; i < order.size(); ++i) node.children[i] = order[i].second;
  }

  // Recursion is no deeper than validated metadata is nested.
  void total(std::size_t index) {
    for (const std::size_t child : nodes_[index].children) {
      total(child);
      nodes_[index].info.bytes += nodes_[child].info.bytes;
      nodes_[index].info.leaves += nodes_[child].info.leaves;
      nodes_[index].wanted = nodes_[index].wanted || nodes_[child].wanted;
    }
    if (nodes_[index].entry != nullptr && !is_container(*nodes_[index].entry)) nodes_[index].wanted = true;
    std::erase_if(nodes_[index].children, [this](std::size_t child) { return !nodes_[child].wanted; });
    sort_children(nodes_[index].children);
  }

  void sort_children(std::vector<std::size_t>& children) const {
    if (options_.order == ListOptions::Order::kName) {
      std::stable_sort(children.begin(), children.end(),
                       [this](std::size_t a, std::size_t b) { return nodes_[a].info.path < nodes_[b].info.path; });
    } else if (options_.order == ListOptions::Order::kSize) {
      std::stable_sort(children.begin(), children.end(),
                       [this](std::size_t a, std::size_t b) { return nodes_[a].info.bytes > nodes_[b].info.bytes; });
    }
  }

  void append(std::size_t index, std::vector<EntryInfo>& lines) {
    Node& node = nodes_[index];
    if (!node.wanted || (options_.max_level && node.info.level > *options_.max_level)) return;
    lines.push_back(std::move(node.info));
    for (const std::size_t child : node.children) append(child, lines);
  }

  const ListOptions& options_;
  PathFilter filter_;
  TensorIndex tensors_;
  std::vector<Node> nodes_;
  std::unordered_map<std::string, std::size_t> index_;
  std::vector<std::size_t> ranks_;
};

}  // namespace

LocationSizes object_sizes(const SnapshotMetadata& metadata, Storage& storage, const std::stop_token& stop) {
  std::set<std::string, std::less<>> locations;
  for (const auto& [path, entry] : metadata.manifest) {
    for (const std::string_view location : entry_locations(entry)) locations.emplace(location);
  }
  // One listing for each of the few folders at the top instead of a request for each object.
  LocationSizes listed;
  std::set<std::string> tops;
  for (const std::string& location : locations) {
    const std::string normal = normalize_location(location);
    tops.insert(normal.substr(0, std::min(normal.find('/') + 1, normal.size())));
  }
  LocationSizes sizes;
  try {
    for (const std::string& top : tops) {
      if (stop.stop_requested()) throw Error(ErrorCode::kCancelled, "listing " + storage.url() + " was cancelled");
      for (const ObjectInfo& object : storage.list_objects(top)) {
        if (object.size) listed.emplace(object.location, *object.size);
      }
    }
    for (const std::string& location : locations) {
      const auto found = listed.find(normalize_location(location));
      if (found != listed.end()) sizes.emplace(location, found->second);
    }
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported) throw;  // a storage that can't list
    for (const std::string& location : locations) {
      try {
        const auto size = storage.sizes(std::span(&location, 1), stop).front();
        if (size) sizes.emplace(location, *size);
      } catch (const Error& of_one) {
        if (of_one.code() != ErrorCode::kNotFound) throw;
      }
    }
  }
  return sizes;
}

std::vector<EntryInfo> list_entries(const SnapshotMetadata& metadata, const LocationSizes& sizes,
                                    const ListOptions& options) {
  return Tree(metadata, sizes, options).flatten();
}

std::string resolve_entry(const SnapshotMetadata& metadata, const std::string& path) {
  if (metadata.manifest.find(path) != nullptr) return path;
  std::optional<std::pair<std::int64_t, std::string>> best;
  std::vector<std::string> candidates;
  for (const auto& [candidate, entry] : metadata.manifest) {
    const auto [rank, logical] = split_rank(candidate);
    if (logical == path && (!best || rank < best->first)) best = {rank, candidate};
    candidates.push_back(candidate);
    candidates.emplace_back(logical);
  }
  if (best) return best->second;
  std::string message = "there is no entry '" + path + "'";
  std::string misses;
  for (const std::string& miss : near_misses(path, candidates, 3)) misses += (misses.empty() ? "'" : "', '") + miss;
  if (!misses.empty()) message += "; did you mean " + misses + "'?";
  throw Error(ErrorCode::kEntryNotFound, message);
}

}  // namespace torchsnapshot
