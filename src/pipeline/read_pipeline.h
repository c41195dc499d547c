// From a read plan to the memory it goes to: read → verify → place.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/checksum_store.h"
#include "pipeline/corruption_log.h"
#include "pipeline/progress.h"
#include "plan/read_plan.h"
#include "torchsnapshot/bytes.h"
#include "torchsnapshot/io_options.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// Sizes of objects by location, as far as they are known.
using ObjectSizes = std::map<std::string, std::uint64_t>;

/// Looks at every object before anything is read: throws Error(kNotFound or kCorrupt) that names entry and object when
/// one is missing, shorter than needed, or of another size than `checksums` (may be null) tells. Returns the sizes.
ObjectSizes check_objects(const std::vector<ObjectNeed>& needs, const ChecksumStore* checksums, Storage& storage,
                          const std::stop_token& stop);

/// What the reads of one operation share. All of it outlives them.
struct ReadContext {
  Storage& storage;
  const IoOptions& options;
  const ObjectSizes& sizes;
  const ChecksumStore* checksums;  ///< null: nothing is verified
  CorruptionLog& corruptions;
  ProgressMeter& meter;
};

/// Reads blobs; the results are in the order asked, and verified. Nothing for one that is corrupt, if that is no error.
std::vector<std::optional<SharedBytes>> run_blob_reads(const std::vector<BlobRead>& blobs, const ReadContext& context);

/// Reads every range, verifies the checksum blocks it touches, and places it. What goes through a buffer is verified,
/// as far as its checksum blocks are in it, before it is placed.
void run_reads(const ReadPlan& plan, const ReadContext& context);

}  // namespace torchsnapshot
