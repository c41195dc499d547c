// The only place where plans and storage meet. Dumb: every decision was made in the plan.
#pragma once

#include <cstdint>
#include <map>
#include <stop_token>
#include <string>
#include <vector>

#include "pipeline/progress.h"
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

/// Looks at every object before anything is read: throws Error(kNotFound or kCorrupt) that names entry and object when
/// one is missing or shorter than needed. Returns the sizes by location, where the storage can tell them.
std::map<std::string, std::uint64_t> check_objects(const std::vector<ObjectNeed>& needs, Storage& storage,
                                                   const std::stop_token& stop);

/// Reads blobs; the results are in the order asked. `sizes`: as check_objects returned them.
std::vector<SharedBytes> run_blob_reads(const std::vector<BlobRead>& blobs,
                                        const std::map<std::string, std::uint64_t>& sizes, Storage& storage,
                                        const IoOptions& options, ProgressMeter& meter);

/// Reads every range and places it.
void run_reads(const ReadPlan& plan, Storage& storage, const IoOptions& options, ProgressMeter& meter);

}  // namespace torchsnapshot
