// The only place where plans and storage meet. Dumb: every decision was made in the plan.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/read_plan.h"
#include "plan/write_plan.h"
#include "torchsnapshot/io_options.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// Bytes moved by one task: staged, written or read as a unit.
inline constexpr std::uint64_t kBlockBytes = 16ULL << 20;
/// Contiguous memory of at least this size is written and read where it lies, without a buffer.
inline constexpr std::uint64_t kDirectBytes = 1ULL << 20;

/// The memory budget that `options` asks for.
std::uint64_t budget_or_default(const IoOptions& options);

/// Writes every object of the plan and finishes it. On an error the objects may be there in part.
void run_writes(const WritePlan& plan, Storage& storage, const IoOptions& options);

/// Checks every object's size against the plan, and only then reads every range and places it. Returns the
/// blobs in the order asked.
std::vector<SharedBytes> run_reads(const ReadPlan& plan, const std::vector<BlobRead>& blobs, Storage& storage,
                                   const IoOptions& options);

}  // namespace torchsnapshot
