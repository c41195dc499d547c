// One plan for many ranks: what several of them have alike is written once. Pure.
//
// Each rank looks at its own state for what others have too (find_shares): leaves that globs name as replicated, and
// the shards of sharded tensors that several ranks hold. It tells the others digests only (summary_of). Where the
// digests of all ranks concerned agree, they have the same list, and each computes the same division of it (divide).
// Whether they agree shows in sums over all ranks (ShareSums), which cost a rank the same however many there are.
// Ranks whose lists of replicated leaves differ send each other the lists, and take what all have (common_leaves).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "plan/digest.h"
#include "state/flatten.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot {

/// A leaf that every rank has, as its rank describes it.
struct ReplicatedLeaf {
  std::string path;
  std::string kind;           ///< of the leaf; for tensors with dtype and shape
  std::string content;        ///< the value of a primitive; of a dense CPU tensor, a digest of samples of its bytes
  std::uint64_t bytes = 0;    ///< 0: nothing is stored beside the manifest
  std::int64_t rows = 1;      ///< at which it may be cut
  std::int64_t same_as = -1;  ///< index of an earlier leaf of the list that is the same memory
  friend bool operator==(const ReplicatedLeaf&, const ReplicatedLeaf&) = default;
};

/// Leaves of which the same ranks hold the same shards.
struct ShardGroup {
  Dims ranks;                        ///< ascending, more than one
  std::vector<std::size_t> leaves;   ///< indices into FlatState::leaves
  std::vector<std::uint64_t> bytes;  ///< of the shards of each
  Digest digest;                     ///< of paths, dtypes, shapes and boxes
};

/// What a rank has in common with others, as far as it can tell by itself.
struct LocalShares {
  std::vector<ReplicatedLeaf> replicated;  ///< in the order of the leaves
  std::vector<ShardGroup> groups;
};

/// Looks for leaves that match one of the globs (sharded ones excepted: they know themselves who has them), and for
/// sharded leaves with replicas.
LocalShares find_shares(const FlatState& state, const std::vector<std::string>& globs);

/// What a rank tells all others of its shares.
struct ShareSummary {
  struct Group {
    std::uint64_t ranks = 0;  ///< digest of the set
    Digest content;
    friend bool operator==(const Group&, const Group&) = default;
  };
  std::vector<Group> groups;
  friend bool operator==(const ShareSummary&, const ShareSummary&) = default;
};
/// Groups beyond this many are not told, and so not shared, where not all ranks agree.
inline constexpr std::size_t kMaxToldGroups = 4;
inline constexpr std::size_t kMaxSummaryBytes = 1 + kMaxToldGroups * 24;

/// Numbers to be added up over all ranks, modulo 2^64. Each sum is 0 when all agree, and, but for chance, only then.
struct ShareSums {
  std::array<std::uint64_t, 2> form{};     ///< of the replicated leaves, without content
  std::array<std::uint64_t, 2> content{};  ///< of the replicated leaves
  std::array<std::uint64_t, 2> groups{};   ///< every rank of every group tells the same of it
};
ShareSums sums_of(const LocalShares& shares, std::int64_t rank, std::int64_t world_size);
/// A number of `value` to be added up with those of the other ranks: the sum is 0 when all have the same.
std::uint64_t equal_term(std::uint64_t value, std::int64_t rank, std::int64_t world_size) noexcept;
/// Of all that bears on how a rank's state is divided, but for content: the same digest, the same division.
Digest form_of(const LocalShares& shares);

ShareSummary summary_of(const LocalShares& shares);
/// At most kMaxSummaryBytes.
std::string serialize(const ShareSummary& summary);
/// Throws Error(kCorrupt) for anything that serialize() does not write.
ShareSummary parse_summary(std::string_view bytes);

std::string serialize(const std::vector<ReplicatedLeaf>& leaves);
/// Bytes that serialize() gives.
std::size_t serialized_size(const std::vector<ReplicatedLeaf>& leaves);
/// Throws Error(kCorrupt) for anything that serialize() does not write.
std::vector<ReplicatedLeaf> parse_leaves(std::string_view bytes);

/// What lists that differ have in common.
struct CommonLeaves {
  std::vector<ReplicatedLeaf> leaves;    ///< in the lists of all, and of one kind; as rank 0 has them
  std::vector<std::string> other_value;  ///< paths of those among them whose content differs
  std::vector<std::string> other_kind;   ///< paths that all have, but not of one kind: not in `leaves`
};
CommonLeaves common_leaves(const std::vector<std::vector<ReplicatedLeaf>>& lists);

/// A rank's part of the state.
struct DividedState {
  /// Without the replicated leaves that others write. A part of a replicated tensor is a sharded tensor with the rows
  /// to write; sharded tensors whose shards another rank writes have none.
  FlatState state;
  std::vector<std::unique_ptr<Value>> made;  ///< what `state` refers to beside the tree
};

/// Of which groups all members have told the same, by group. `summaries`: of all ranks, by rank.
std::vector<bool> agreed_groups(const LocalShares& shares, const std::vector<ShareSummary>& summaries);

/// The part of rank `rank`. `replicated`: agreed by all ranks. `agreed`: by group, see agreed_groups.
DividedState divide(const FlatState& state, const LocalShares& shares, const std::vector<ReplicatedLeaf>& replicated,
                    const std::vector<bool>& agreed, std::int64_t rank, std::int64_t world_size);

/// The manifest of all: the entries of every rank's plan (paths with the rank in front), with the replicated leaves put
/// together under rank 0. Throws Error(kInternal) when a portion is missing.
Manifest merge_manifests(const std::vector<Manifest>& parts, const std::vector<ReplicatedLeaf>& replicated);

}  // namespace torchsnapshot
