#include "manifest/rank_view.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <tuple>
#include <unordered_set>

#include "core/path_codec.h"
#include "core/text.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

/// A path that the view shows. Either `entry` is set, or the entry is to be merged from `parts`.
struct Slot {
  std::string_view path;
  const Entry* entry = nullptr;
  std::vector<const Entry*> parts;  ///< sharded entries of all ranks
  std::size_t order = 0;            ///< place in the manifest
  std::int64_t saver = 0;           ///< a rank that saved it
  bool own = false;                 ///< the rank's own containers know of it
  bool dropped = false;
};

/// Which indices of a list the view has.
struct ListIndices {
  std::unordered_set<std::uint64_t> own;
  std::uint64_t next = 0;  ///< all below are there
};

std::optional<std::uint64_t> list_index(std::string_view component) {
  std::uint64_t index = 0;
  const char* const end = component.data() + component.size();
  const auto [stop, status] = std::from_chars(component.data(), end, index);
  if (status != std::errc() || stop != end) return std::nullopt;
  return index;
}

/// Order of paths by components, shorter components first: parents before children, list elements by number.
bool natural_less(std::string_view a, std::string_view b) {
  for (;;) {
    const std::size_t a_end = std::min(a.find('/'), a.size());
    const std::size_t b_end = std::min(b.find('/'), b.size());
    if (a_end != b_end) return a_end < b_end;
    if (const int order = a.substr(0, a_end).compare(b.substr(0, b_end)); order != 0) return order < 0;
    if (b_end == b.size()) return false;
    if (a_end == a.size()) return true;
    a.remove_prefix(a_end + 1);
    b.remove_prefix(b_end + 1);
  }
}

std::unique_ptr<Entry> merge(const std::vector<const Entry*>& parts, const Entry* own) {
  ShardedTensorEntry merged;
  merged.layout = std::get<ShardedTensorEntry>(own != nullptr ? *own : *parts.front()).layout;
  for (const Entry* part : parts) {
    const auto& shards = std::get<ShardedTensorEntry>(*part).shards;
    merged.shards.insert(merged.shards.end(), shards.begin(), shards.end());
  }
  const auto place = [](const ShardEntry& shard) { return std::tie(shard.box.offsets, shard.box.sizes); };
  std::stable_sort(merged.shards.begin(), merged.shards.end(),
                   [&place](const ShardEntry& a, const ShardEntry& b) { return place(a) < place(b); });
  const auto end = std::unique(merged.shards.begin(), merged.shards.end(),
                               [](const ShardEntry& a, const ShardEntry& b) { return a.box == b.box; });
  merged.shards.erase(end, merged.shards.end());
  return std::make_unique<Entry>(std::move(merged));
}

/// Makes the view in three steps: collect() decides which paths are in it; link() makes the containers name what other
/// ranks contributed, and creates containers that are missing; finish() makes the entries that differ from the
/// manifest's.
class Builder {
 public:
  /// A rank that did not exist at save time takes rank 0 as its `base`, but not what was private to it.
  Builder(const Manifest& manifest, std::int64_t base, bool existed)
      : manifest_(manifest), base_(base), existed_(existed) {}

  void collect() {
    std::size_t order = 0;
    for (const auto& [path, entry] : manifest_) {
      const auto [rank, logical] = split_rank(path);
      ++order;
      if (std::holds_alternative<ShardedTensorEntry>(entry)) {
        Slot& slot = slot_of(logical, order, rank);
        slot.parts.push_back(&entry);
        if (rank == base_) {
          slot.own = true;
          own_parts_.emplace(logical, &entry);
        }
      } else if (rank == base_) {
        if (!existed_ && !is_container(entry) && !is_replicated(entry)) {
          private_paths_.push_back(logical);
          continue;
        }
        Slot& slot = slot_of(logical, order, rank);
        // Old versions listed replicated entries on every rank; rank 0's counts.
        if (slot.entry == nullptr) slot.entry = &entry;
        slot.own = true;
      } else if (rank == 0 && is_replicated(entry)) {
        Slot& slot = slot_of(logical, order, rank);
        slot.entry = &entry;
      }
    }
  }

  void link() {
    std::vector<std::size_t> unlinked;
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      const Slot& slot = slots_[i];
      const std::size_t slash = slot.path.rfind('/');
      if (slash == std::string_view::npos) continue;
      const Entry* parent = container_at(slot.path.substr(0, slash));
      if (slot.own) {
        if (parent == nullptr || !std::holds_alternative<ListEntry>(*parent)) continue;
        if (const auto index = list_index(slot.path.substr(slash + 1))) {
          lists_[slot.path.substr(0, slash)].own.insert(*index);
        }
      } else if (parent == nullptr || !has_key(*parent, slot.path.substr(slash + 1))) {
        unlinked.push_back(i);
      }
    }
    std::sort(unlinked.begin(), unlinked.end(),
              [this](std::size_t a, std::size_t b) { return natural_less(slots_[a].path, slots_[b].path); });
    for (const std::size_t i : unlinked) {
      // A replicated entry belongs to every rank, whatever its containers say.
      const bool replicated = slots_[i].entry != nullptr && is_replicated(*slots_[i].entry);
      if (!link_to_parent(slots_[i].path, slots_[i].saver, slots_[i].order) && !replicated) slots_[i].dropped = true;
    }
    for (const std::string_view path : private_paths_) {
      const std::size_t slash = path.rfind('/');
      if (slash != std::string_view::npos && !index_.contains(path)) {
        removed_[path.substr(0, slash)].insert(decode_component(path.substr(slash + 1)));
      }
    }
  }

  void finish(std::vector<ViewEntry>& entries, std::vector<std::unique_ptr<Entry>>& made) {
    for (Slot& slot : slots_) {
      if (slot.dropped) continue;
      if (slot.entry == nullptr) {
        const auto own = own_parts_.find(slot.path);
        if (slot.parts.size() == 1) {
          slot.entry = slot.parts.front();
        } else {
          made.push_back(merge(slot.parts, own == own_parts_.end() ? nullptr : own->second));
          slot.entry = made.back().get();
        }
      }
      const auto added = added_.find(slot.path);
      const auto removed = removed_.find(slot.path);
      if ((added == added_.end() && removed == removed_.end()) || !std::holds_alternative<DictEntry>(*slot.entry))
        continue;
      auto changed = std::make_unique<Entry>(*slot.entry);
      auto& keys = std::get<DictEntry>(*changed).keys;
      if (removed != removed_.end()) {
        std::erase_if(keys, [&removed](const Key& key) { return removed->second.contains(key.text); });
      }
      if (added != added_.end()) keys.insert(keys.end(), added->second.begin(), added->second.end());
      made.push_back(std::move(changed));
      slot.entry = made.back().get();
    }
    for (auto& container : created_) made.push_back(std::move(container));
    std::erase_if(slots_, [](const Slot& slot) { return slot.dropped; });
    // A created container has the order of the entry that needed it, and a shorter path.
    std::sort(slots_.begin(), slots_.end(), [](const Slot& a, const Slot& b) {
      return std::make_tuple(a.order, a.path.size()) < std::make_tuple(b.order, b.path.size());
    });
    entries.reserve(slots_.size());
    for (const Slot& slot : slots_) entries.push_back({std::string(slot.path), slot.entry, !slot.own});
  }

 private:
  Slot& slot_of(std::string_view path, std::size_t order, std::int64_t saver) {
    const auto [place, is_new] = index_.emplace(path, slots_.size());
    if (is_new) slots_.push_back({.path = path, .entry = nullptr, .parts = {}, .order = order, .saver = saver});
    return slots_[place->second];
  }

  /// The container of that path in the view, or null.
  const Entry* container_at(std::string_view path) const {
    const auto found = index_.find(path);
    if (found == index_.end()) return nullptr;
    const Entry* entry = slots_[found->second].entry;
    return entry != nullptr && is_container(*entry) ? entry : nullptr;
  }

  const Key* find_key(const DictEntry& dict, std::string_view component) {
    const auto [place, is_new] = keys_.try_emplace(&dict);
    auto& keys = place->second;
    if (is_new) {
      keys.reserve(dict.keys.size());
      for (const Key& key : dict.keys) keys.emplace(key.text, &key);
    }
    const auto found = keys.find(decode_component(component));
    return found == keys.end() ? nullptr : found->second;
  }

  bool has_key(const Entry& container, std::string_view component) {
    const auto* dict = std::get_if<DictEntry>(&container);
    return dict != nullptr && find_key(*dict, component) != nullptr;
  }

  /// Makes the container of `path` name it, creating containers as `saver` has them. False when there is no way: a
  /// leaf stands where the container would be, or a list would get a hole.
  bool link_to_parent(std::string_view path, std::int64_t saver, std::size_t order) {
    const std::size_t slash = path.rfind('/');
    if (slash == std::string_view::npos) return true;
    const std::string_view parent_path = path.substr(0, slash);
    const std::string_view component = path.substr(slash + 1);
    const Entry* saved = manifest_.find(std::to_string(saver) + "/" + std::string(parent_path));
    const Entry* parent = container_at(parent_path);
    if (parent == nullptr) {
      if (index_.contains(parent_path) || saved == nullptr || !is_container(*saved)) return false;
      if (!link_to_parent(parent_path, saver, order)) return false;
      created_.push_back(std::make_unique<Entry>(*saved));
      parent = created_.back().get();
      if (auto* dict = std::get_if<DictEntry>(created_.back().get())) dict->keys.clear();
      slot_of(parent_path, order, saver).entry = parent;
    }
    if (const auto* dict = std::get_if<DictEntry>(parent)) {
      if (find_key(*dict, component) != nullptr) return true;
      const auto* saved_dict = saved == nullptr ? nullptr : std::get_if<DictEntry>(saved);
      const Key* key = saved_dict == nullptr ? nullptr : find_key(*saved_dict, component);
      added_[parent_path].push_back(key != nullptr ? *key : Key(decode_component(component)));
      return true;
    }
    const auto index = list_index(component);
    ListIndices& indices = lists_[parent_path];
    while (indices.own.contains(indices.next)) ++indices.next;
    if (!index || *index != indices.next) return false;
    ++indices.next;
    return true;
  }

  const Manifest& manifest_;
  const std::int64_t base_;
  const bool existed_;
  std::vector<Slot> slots_;
  // Paths point into the manifest.
  std::unordered_map<std::string_view, std::size_t> index_;  // into slots_
  std::unordered_map<std::string_view, const Entry*> own_parts_;
  std::vector<std::string_view> private_paths_;
  std::unordered_map<std::string_view, std::vector<Key>> added_;
  std::unordered_map<std::string_view, std::unordered_set<std::string>> removed_;  // decoded components
  std::unordered_map<std::string_view, ListIndices> lists_;
  std::unordered_map<const DictEntry*, std::unordered_map<std::string_view, const Key*>> keys_;
  std::vector<std::unique_ptr<Entry>> created_;
};

}  // namespace

RankView::RankView(const SnapshotMetadata& metadata, std::int64_t rank) {
  if (rank < 0) throw Error(ErrorCode::kInvalidArgument, "rank " + std::to_string(rank) + " is negative");
  const bool existed = rank < metadata.world_size;
  if (existed && metadata.world_size == 1) {
    // Nobody else has anything to add.
    entries_.reserve(metadata.manifest.size());
    for (const auto& [path, entry] : metadata.manifest) {
      entries_.push_back({.path = std::string(split_rank(path).second), .entry = &entry, .added = false});
    }
  } else {
    Builder builder(metadata.manifest, existed ? rank : 0, existed);
    builder.collect();
    builder.link();
    builder.finish(entries_, merged_);
  }
  index_.reserve(entries_.size());
  for (std::size_t i = 0; i < entries_.size(); ++i) index_.emplace(entries_[i].path, i);
}

const Entry* RankView::find(std::string_view path) const noexcept {
  const auto found = index_.find(path);
  return found == index_.end() ? nullptr : entries_[found->second].entry;
}

std::optional<ViewEntry> find_own_leaf(const SnapshotMetadata& metadata, std::int64_t rank, std::string_view path) {
  if (rank < 0 || rank >= metadata.world_size) return std::nullopt;
  const auto saved_by = [&](std::int64_t saver) {
    return metadata.manifest.find(std::to_string(saver) + "/" + std::string(path));
  };
  const Entry* entry = saved_by(rank);
  if (entry == nullptr || is_container(*entry) || std::holds_alternative<ShardedTensorEntry>(*entry)) {
    return std::nullopt;
  }
  if (rank != 0 && is_replicated(*entry)) {
    // Old versions listed replicated entries on every rank; rank 0's counts.
    const Entry* first = saved_by(0);
    if (first != nullptr && is_replicated(*first)) entry = first;
  }
  return ViewEntry{.path = std::string(path), .entry = entry, .added = false};
}

std::pair<std::int64_t, std::string_view> split_rank(std::string_view path) {
  const std::size_t slash = path.find('/');
  const std::string_view digits = path.substr(0, slash);
  std::int64_t rank = -1;
  const auto [stop, status] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
  const bool canonical = status == std::errc() && stop == digits.data() + digits.size() && rank >= 0 &&
                         (digits.size() == 1 || digits.front() != '0') && digits.front() != '-';
  if (slash == std::string_view::npos || !canonical) {
    throw Error(ErrorCode::kInvalidArgument,
                "path " + quote_text(path) + " does not begin with a rank, as in '0/model/weight'");
  }
  return {rank, path.substr(slash + 1)};
}

Dims global_shape(const ShardedTensorEntry& entry) {
  if (entry.shards.empty()) {
    throw Error(ErrorCode::kCorrupt, "a sharded tensor of which no rank saved a shard has no known shape");
  }
  Dims shape(entry.shards.front().box.sizes.size(), 0);
  for (const ShardEntry& shard : entry.shards) {
    for (std::size_t d = 0; d < shape.size(); ++d) {
      shape[d] = std::max(shape[d], shard.box.offsets[d] + shard.box.sizes[d]);
    }
  }
  return shape;
}

}  // namespace torchsnapshot
