// What takes over one coordinator remember of their plan.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "plan/digest.h"
#include "plan/world_parts.h"
#include "plan/world_plan.h"

namespace torchsnapshot {

/// The plan that all ranks agreed on last. Every rank of the world has one, or none has.
struct TakeMemory {
  std::string seed;                         ///< the take's id then: the ids of the takes that follow are made of it
  std::uint64_t count = 0;                  ///< takes since
  Digest input;                             ///< of what the plan follows from, but for memory
  std::vector<ReplicatedLeaf> replicated;   ///< as agreed
  std::vector<bool> agreed;                 ///< see agreed_groups
  Digest part;                              ///< of this rank's entries, but for values
  std::string values;                       ///< of this rank's primitives, as rank 0 has them
  std::shared_ptr<const WorldParts> parts;  ///< on rank 0
};

}  // namespace torchsnapshot
