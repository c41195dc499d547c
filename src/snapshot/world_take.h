// The plan of a take of several ranks.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "coord/commit_vote.h"
#include "plan/world_parts.h"
#include "plan/world_plan.h"
#include "plan/write_plan.h"
#include "torchsnapshot/coordinator.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {

/// 128 random bits in hex: unique to one take.
std::string make_take_id();
/// The state of all keys taken apart. Throws Error(kInvalidArgument) for a key that is there twice.
FlatState flatten_app(const AppState& app);
/// The limits of `options` for the planner.
WritePlanOptions plan_options(const TakeOptions& options, const std::string& take_id);

/// One rank's part of a take.
struct WorldTake {
  std::string take_id;
  WritePlan plan;                           ///< of what this rank writes
  bool is_unchanged = false;                ///< the plan of the last take
  std::shared_ptr<const WorldParts> parts;  ///< on rank 0: the entries of all ranks
  std::vector<ReplicatedLeaf> replicated;   ///< for WorldParts::merge
  std::unique_ptr<CommitVote> vote;         ///< on which the take ends
};

/// Plans together with the other ranks; the exchanges are in world_take.cc. An error on any rank is an error on all:
/// thrown here, or, when a rank fails after the others have gone on, by the vote.
WorldTake plan_world_take(Coordinator& coordinator, const AppState& app, const TakeOptions& options);

/// For a rank that can't take part: joins the exchange of plan_world_take in which the others wait for it, and so ends
/// the take on all of them.
void refuse_world_take(Coordinator& ranks, const std::string& error);

}  // namespace torchsnapshot
