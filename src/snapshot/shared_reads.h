// Reads that one rank does for all: read → verify → hand round → place.
#pragma once

#include <vector>

#include "pipeline/read_pipeline.h"
#include "plan/read_plan.h"
#include "snapshot/share_session.h"
#include "torchsnapshot/corruption.h"

namespace torchsnapshot {

/// Reads what all ranks want of their plans, each rank a part, and places it on all; takes it out of `plan`. Returns
/// what any rank found damaged, which also went to context.corruptions. Collective.
std::vector<Corruption> run_shared_reads(ReadPlan& plan, const ReadContext& context, ShareSession& session);

}  // namespace torchsnapshot
