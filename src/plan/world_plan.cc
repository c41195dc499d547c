#include "plan/world_plan.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <optional>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <variant>

#include "manifest/primitive.h"
#include "plan/glob.h"
#include "plan/message.h"
#include "plan/partition.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

std::string text_of(const Dims& dims) {
  std::string text;
  for (const std::int64_t dim : dims) text += (text.empty() ? "" : ",") + std::to_string(dim);
  return "[" + text + "]";
}

/// Memory seen in one way: two leaves with the same key are stored once.
std::string memory_key(const TensorView& view) {
  return std::to_string(reinterpret_cast<std::uintptr_t>(view.data)) + std::string(dtype_name(view.dtype)) +
         text_of(view.shape) + text_of(view.strides);
}

/// Digest of the head, the middle and the tail of a tensor that lies dense in CPU memory: a replica that went astray
/// differs everywhere, and the whole would be one more pass over the memory.
std::string sample(const TensorView& view) {
  constexpr std::uint64_t kSample = 512;
  if (view.device != DeviceType::kCpu || view.data == nullptr || !view.is_contiguous()) return {};
  const std::uint64_t bytes = view.nbytes();
  const std::uint64_t size = std::min(kSample, bytes);
  Digester digester;
  for (const std::uint64_t begin : {std::uint64_t{0}, (bytes - size) / 2, bytes - size}) {
    digester.add(std::string_view(reinterpret_cast<const char*>(view.data) + begin, size));
  }
  return std::to_string(digester.digest().low);
}

/// Kind, bytes and rows of a leaf that may be replicated; nothing for one that may not.
std::optional<ReplicatedLeaf> describe(const Value& value) {
  ReplicatedLeaf leaf;
  if (const auto* view = value.get_if<TensorView>()) {
    leaf.kind = std::string(dtype_name(view->dtype)) + text_of(view->shape);
    leaf.bytes = view->nbytes();
    leaf.rows = view->shape.empty() ? 1 : std::max<std::int64_t>(view->shape[0], 1);
    leaf.content = sample(*view);
    return leaf;
  }
  if (const auto* encoded = value.get_if<EncodedTensor>()) {
    leaf.kind = std::string(dtype_name(encoded->dtype)) + text_of(encoded->shape);
    for (const EncodedPart& part : encoded->parts) {
      leaf.kind += part.serializer;
      leaf.bytes += part.bytes.size();
    }
    return leaf;
  }
  if (const auto* opaque = value.get_if<Opaque>()) {
    leaf.kind = "object";
    leaf.bytes = opaque->bytes.size();
    return leaf;
  }
  if (value.get_if<ShardedTensor>() != nullptr || value.get_if<List>() != nullptr || value.get_if<Dict>() != nullptr) {
    return std::nullopt;
  }
  const PrimitiveEntry entry = make_primitive_entry(value, true);
  leaf.kind = "primitive " + std::to_string(static_cast<int>(entry.type));
  leaf.content = entry.serialized_value;
  return leaf;
}

std::uint64_t digest_of_ranks(const Dims& ranks) {
  Digester digester;
  digester.add_all(ranks);
  return digester.digest().low;
}

Error malformed() {
  return Error(ErrorCode::kCorrupt, "a message of another rank is malformed");
}

/// Portions of each leaf of the list. Small objects stay together with rank 0, which finds equal ones.
std::vector<std::vector<Portion>> portions_of(const std::vector<ReplicatedLeaf>& leaves, std::int64_t world_size) {
  constexpr std::uint64_t kSmallObject = 64 << 10;
  std::vector<SharedBulk> bulks;
  std::vector<std::size_t> bulk_of(leaves.size(), SIZE_MAX);
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    const ReplicatedLeaf& leaf = leaves[i];
    if (leaf.bytes == 0 || leaf.same_as >= 0 || (leaf.kind == "object" && leaf.bytes < kSmallObject)) continue;
    bulk_of[i] = bulks.size();
    bulks.push_back({leaf.bytes, leaf.rows});
  }
  const auto divided = partition(bulks, world_size);
  std::vector<std::vector<Portion>> portions(leaves.size());
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    if (leaves[i].same_as >= 0) {
      portions[i] = portions[static_cast<std::size_t>(leaves[i].same_as)];
    } else if (bulk_of[i] == SIZE_MAX) {
      portions[i] = {{0, 0, leaves[i].rows}};
    } else {
      portions[i] = divided[bulk_of[i]];
    }
  }
  return portions;
}

/// Rows [begin, end) of a tensor, as its shards.
Value rows_of(const TensorView& view, const std::vector<Portion>& portions, std::int64_t rank) {
  ShardedTensor part{view.dtype, view.shape, {}, {}, nullptr};
  for (const Portion& portion : portions) {
    if (portion.writer != rank) continue;
    Box box = Box::whole(view.shape);
    box.offsets[0] = portion.begin;
    box.sizes[0] = portion.end - portion.begin;
    TensorView rows = narrow(view, box);
    part.shards.push_back({std::move(box), std::move(rows)});
  }
  return part;
}

/// Of the replicated leaves, without content.
Digest digest_of(const std::vector<ReplicatedLeaf>& leaves) {
  Digester digester;
  for (const ReplicatedLeaf& leaf : leaves) {
    digester.add(std::string_view(leaf.path));
    digester.add(std::string_view(leaf.kind));
    digester.add(leaf.bytes);
    digester.add(static_cast<std::uint64_t>(leaf.rows));
    digester.add(static_cast<std::uint64_t>(leaf.same_as));
  }
  return digester.digest();
}

/// True when all members of the group have told the same of it.
bool is_agreed(const ShardGroup& group, const std::vector<ShareSummary>& summaries) {
  const ShareSummary::Group wanted{digest_of_ranks(group.ranks), group.digest};
  return std::all_of(group.ranks.begin(), group.ranks.end(), [&](std::int64_t rank) {
    if (rank < 0 || static_cast<std::size_t>(rank) >= summaries.size()) return false;
    const auto& groups = summaries[static_cast<std::size_t>(rank)].groups;
    return std::find(groups.begin(), groups.end(), wanted) != groups.end();
  });
}

}  // namespace

LocalShares find_shares(const FlatState& state, const std::vector<std::string>& globs) {
  std::vector<Glob> patterns;
  for (const std::string& glob : globs) patterns.emplace_back(glob);
  LocalShares shares;
  std::unordered_map<std::string, std::int64_t> memories;
  std::map<Dims, std::size_t> groups;
  std::vector<Digester> digests;
  std::size_t group = 0;  ///< of the last sharded leaf
  for (std::size_t i = 0; i < state.leaves.size(); ++i) {
    const FlatLeaf& leaf = state.leaves[i];
    if (const auto* sharded = leaf.value->get_if<ShardedTensor>()) {
      if (sharded->replicas.size() < 2 || sharded->shards.empty()) continue;
      // Most often those of the tensor before. (They may be many, and equality is quicker to tell than order.)
      if (group >= shares.groups.size() || shares.groups[group].ranks != sharded->replicas) {
        const auto [at, is_new] = groups.try_emplace(sharded->replicas, shares.groups.size());
        group = at->second;
        if (is_new) {
          shares.groups.push_back({sharded->replicas, {}, {}, {}});
          digests.emplace_back();
        }
      }
      Digester& digest = digests[group];
      digest.add(std::string_view(leaf.path));
      digest.add(static_cast<std::uint64_t>(sharded->dtype));
      digest.add_all(sharded->shape);
      std::uint64_t bytes = 0;
      for (const LocalShard& shard : sharded->shards) {
        digest.add_all(shard.box.offsets);
        digest.add_all(shard.box.sizes);
        bytes += shard.view.nbytes();
      }
      shares.groups[group].leaves.push_back(i);
      shares.groups[group].bytes.push_back(bytes);
      continue;
    }
    const bool matches = std::any_of(patterns.begin(), patterns.end(),
                                     [&leaf](const Glob& pattern) { return pattern.matches(leaf.path); });
    auto described = matches ? describe(*leaf.value) : std::nullopt;
    if (!described) continue;
    described->path = leaf.path;
    const auto* view = leaf.value->get_if<TensorView>();
    if (view != nullptr && view->data != nullptr && described->bytes != 0) {
      const auto index = static_cast<std::int64_t>(shares.replicated.size());
      const auto [at, is_new] = memories.try_emplace(memory_key(*view), index);
      if (!is_new) described->same_as = at->second;
    }
    shares.replicated.push_back(*std::move(described));
  }
  for (std::size_t g = 0; g < shares.groups.size(); ++g) shares.groups[g].digest = digests[g].digest();
  return shares;
}

ShareSummary summary_of(const LocalShares& shares) {
  ShareSummary summary;
  for (const ShardGroup& group : shares.groups) {
    if (summary.groups.size() == kMaxToldGroups) break;
    summary.groups.push_back({digest_of_ranks(group.ranks), group.digest});
  }
  return summary;
}

std::uint64_t equal_term(std::uint64_t value, std::int64_t rank, std::int64_t world_size) noexcept {
  return rank == 0 ? value * static_cast<std::uint64_t>(world_size - 1) : 0 - value;
}

ShareSums sums_of(const LocalShares& shares, std::int64_t rank, std::int64_t world_size) {
  ShareSums sums;
  const auto set = [&](std::array<std::uint64_t, 2>& place, const Digest& digest) {
    place = {equal_term(digest.high, rank, world_size), equal_term(digest.low, rank, world_size)};
  };
  set(sums.form, digest_of(shares.replicated));
  Digester content;
  for (const ReplicatedLeaf& leaf : shares.replicated) content.add(std::string_view(leaf.content));
  set(sums.content, content.digest());
  for (const ShardGroup& group : shares.groups) {
    // The first rank of a group counts against all the others of it.
    Digester told;
    told.add_all(group.ranks);
    told.add(group.digest.high);
    told.add(group.digest.low);
    const Digest digest = told.digest();
    const bool is_first = group.ranks.front() == rank;
    const auto others = static_cast<std::uint64_t>(group.ranks.size() - 1);
    sums.groups[0] += is_first ? digest.high * others : 0 - digest.high;
    sums.groups[1] += is_first ? digest.low * others : 0 - digest.low;
  }
  return sums;
}

Digest form_of(const LocalShares& shares) {
  Digester digester;
  const Digest replicated = digest_of(shares.replicated);
  digester.add(replicated.high);
  digester.add(replicated.low);
  for (const ShardGroup& group : shares.groups) {
    digester.add_all(group.ranks);
    digester.add(group.digest.high);
    digester.add(group.digest.low);
  }
  return digester.digest();
}

std::string serialize(const ShareSummary& summary) {
  MessageWriter writer;
  writer.byte(summary.groups.size());
  for (const ShareSummary::Group& group : summary.groups) {
    writer.number(group.ranks);
    writer.number(group.content.high);
    writer.number(group.content.low);
  }
  return writer.take();
}

ShareSummary parse_summary(std::string_view bytes) {
  MessageReader reader(bytes, malformed());
  ShareSummary summary;
  for (std::size_t count = reader.byte(); count > 0; --count) {
    ShareSummary::Group group;
    group.ranks = reader.number();
    group.content.high = reader.number();
    group.content.low = reader.number();
    summary.groups.push_back(group);
  }
  reader.expect_end();
  return summary;
}

std::string serialize(const std::vector<ReplicatedLeaf>& leaves) {
  MessageWriter writer;
  for (const ReplicatedLeaf& leaf : leaves) {
    writer.text(leaf.path);
    writer.text(leaf.kind);
    writer.text(leaf.content);
    writer.number(leaf.bytes);
    writer.number(static_cast<std::uint64_t>(leaf.rows));
    writer.number(static_cast<std::uint64_t>(leaf.same_as));
  }
  return writer.take();
}

std::size_t serialized_size(const std::vector<ReplicatedLeaf>& leaves) {
  constexpr std::size_t kNumbers = std::size_t{6} * 8;
  std::size_t size = 0;
  for (const ReplicatedLeaf& leaf : leaves) {
    size += kNumbers + leaf.path.size() + leaf.kind.size() + leaf.content.size();
  }
  return size;
}

std::vector<ReplicatedLeaf> parse_leaves(std::string_view bytes) {
  MessageReader reader(bytes, malformed());
  std::vector<ReplicatedLeaf> leaves;
  while (!reader.at_end()) {
    ReplicatedLeaf leaf;
    leaf.path = reader.text();
    leaf.kind = reader.text();
    leaf.content = reader.text();
    leaf.bytes = reader.number();
    leaf.rows = static_cast<std::int64_t>(reader.number());
    leaf.same_as = static_cast<std::int64_t>(reader.number());
    leaves.push_back(std::move(leaf));
  }
  return leaves;
}

CommonLeaves common_leaves(const std::vector<std::vector<ReplicatedLeaf>>& lists) {
  std::vector<std::unordered_map<std::string_view, const ReplicatedLeaf*>> by_path(lists.size());
  for (std::size_t rank = 1; rank < lists.size(); ++rank) {
    for (const ReplicatedLeaf& leaf : lists[rank]) by_path[rank].emplace(leaf.path, &leaf);
  }
  const auto same_as_path = [&lists](std::size_t rank, const ReplicatedLeaf& leaf) -> std::string_view {
    if (leaf.same_as < 0 || static_cast<std::size_t>(leaf.same_as) >= lists[rank].size()) return {};
    return lists[rank][static_cast<std::size_t>(leaf.same_as)].path;
  };
  CommonLeaves common;
  std::vector<std::int64_t> new_index(lists.front().size(), -1);
  for (std::size_t i = 0; i < lists.front().size(); ++i) {
    const ReplicatedLeaf& leaf = lists.front()[i];
    bool everywhere = true;
    bool same_kind = true;
    bool same_content = true;
    bool same_memory = true;  // what is one memory on rank 0 may be two elsewhere, and then is stored twice
    for (std::size_t rank = 1; rank < lists.size() && everywhere; ++rank) {
      const auto found = by_path[rank].find(leaf.path);
      everywhere = found != by_path[rank].end();
      if (!everywhere) break;
      const ReplicatedLeaf& theirs = *found->second;
      same_kind = same_kind && theirs.kind == leaf.kind && theirs.rows == leaf.rows;
      same_content = same_content && theirs.content == leaf.content;
      same_memory = same_memory && same_as_path(0, leaf) == same_as_path(rank, theirs);
    }
    if (!everywhere) continue;
    if (!same_kind) {
      common.other_kind.push_back(leaf.path);
      continue;
    }
    if (!same_content) common.other_value.push_back(leaf.path);
    new_index[i] = static_cast<std::int64_t>(common.leaves.size());
    common.leaves.push_back(leaf);
    auto& same_as = common.leaves.back().same_as;
    if (same_as >= 0) same_as = same_memory ? new_index[static_cast<std::size_t>(same_as)] : -1;
  }
  return common;
}

std::vector<bool> agreed_groups(const LocalShares& shares, const std::vector<ShareSummary>& summaries) {
  std::vector<bool> agreed;
  for (const ShardGroup& group : shares.groups) agreed.push_back(is_agreed(group, summaries));
  return agreed;
}

DividedState divide(const FlatState& state, const LocalShares& shares, const std::vector<ReplicatedLeaf>& replicated,
                    const std::vector<bool>& agreed, std::int64_t rank, std::int64_t world_size) {
  DividedState result;
  result.state.containers = state.containers;
  const auto portions = portions_of(replicated, world_size);
  std::unordered_map<std::string_view, std::size_t> replicated_at;
  for (std::size_t i = 0; i < replicated.size(); ++i) replicated_at.emplace(replicated[i].path, i);

  std::vector<bool> written_by_other(state.leaves.size());
  for (std::size_t g = 0; g < shares.groups.size(); ++g) {
    if (!agreed[g]) continue;
    const ShardGroup& group = shares.groups[g];
    std::vector<SharedBulk> bulks;
    for (const std::uint64_t bytes : group.bytes) bulks.push_back({bytes, 1});
    const auto writers = partition(bulks, static_cast<std::int64_t>(group.ranks.size()));
    for (std::size_t i = 0; i < bulks.size(); ++i) {
      const auto writer = group.ranks[static_cast<std::size_t>(writers[i].front().writer)];
      written_by_other[group.leaves[i]] = writer != rank;
    }
  }

  const auto add_made = [&result](const FlatLeaf& leaf, Value value) {
    result.made.push_back(std::make_unique<Value>(std::move(value)));
    result.state.leaves.push_back({leaf.path, result.made.back().get()});
  };
  for (std::size_t i = 0; i < state.leaves.size(); ++i) {
    const FlatLeaf& leaf = state.leaves[i];
    if (written_by_other[i]) {
      const auto& whole = *leaf.value->get_if<ShardedTensor>();
      add_made(leaf, ShardedTensor{whole.dtype, whole.shape, {}, whole.layout, nullptr});
      continue;
    }
    const auto found = replicated_at.find(leaf.path);
    if (found == replicated_at.end()) {
      result.state.leaves.push_back(leaf);
      continue;
    }
    const std::vector<Portion>& parts = portions[found->second];
    const bool is_mine = std::any_of(parts.begin(), parts.end(), [rank](const Portion& p) { return p.writer == rank; });
    if (!is_mine) continue;
    if (parts.size() == 1) {
      result.state.leaves.push_back(leaf);
    } else {
      add_made(leaf, rows_of(*leaf.value->get_if<TensorView>(), parts, rank));
    }
  }
  return result;
}

Manifest merge_manifests(const std::vector<Manifest>& parts, const std::vector<ReplicatedLeaf>& replicated) {
  /// A replicated leaf, as its writers have described it.
  struct Gathered {
    std::optional<Entry> whole;
    std::vector<ShardEntry> rows;
    Dims shape;
  };
  std::unordered_map<std::string_view, Gathered> gathered;
  for (const ReplicatedLeaf& leaf : replicated) gathered.try_emplace(leaf.path);
  Manifest merged;
  for (const Manifest& part : parts) {
    for (const auto& [path, entry] : part) {
      const std::string_view logical = std::string_view(path).substr(path.find('/') + 1);
      const auto found = gathered.find(logical);
      if (found == gathered.end() || is_container(entry)) {
        merged.add(path, entry);
      } else if (const auto* rows = std::get_if<ShardedTensorEntry>(&entry)) {
        auto& all = found->second.rows;
        all.insert(all.end(), rows->shards.begin(), rows->shards.end());
      } else if (const auto* chunked = std::get_if<ChunkedTensorEntry>(&entry);
                 chunked != nullptr && found->second.whole) {
        throw Error(ErrorCode::kInternal, "two ranks have written '" + std::string(logical) + "'");
      } else {
        found->second.whole = entry;
      }
    }
  }
  for (const ReplicatedLeaf& leaf : replicated) {
    Gathered& found = gathered.at(leaf.path);
    const std::string path = "0/" + leaf.path;
    if (found.whole) {
      std::visit(
          [](auto& entry) {
            if constexpr (requires { entry.replicated; }) entry.replicated = true;
          },
          *found.whole);
      merged.add(path, *std::move(found.whole));
      continue;
    }
    if (found.rows.empty()) throw Error(ErrorCode::kInternal, "no rank has written '" + leaf.path + "'");
    std::sort(found.rows.begin(), found.rows.end(),
              [](const ShardEntry& a, const ShardEntry& b) { return a.box.offsets < b.box.offsets; });
    ChunkedTensorEntry entry{found.rows.front().tensor.dtype, found.rows.back().box.sizes, {}, true};
    entry.shape[0] += found.rows.back().box.offsets[0];
    entry.chunks = std::move(found.rows);
    merged.add(path, std::move(entry));
  }
  return merged;
}

}  // namespace torchsnapshot
