#include <utility>

#include "snapshot/internal.h"
#include "snapshot/take_job.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {

Snapshot Snapshot::take(const std::string& url, const AppState& app, const TakeOptions& options,
                        const StorageOptions& storage_options) {
  return take(open_storage(url, storage_options), app, options);
}

Snapshot Snapshot::take(std::shared_ptr<Storage> storage, const AppState& app, const TakeOptions& options) {
  TakeJob job(std::move(storage), app, options, Staging::kWhereNeeded);
  auto metadata = job.finish();
  Snapshot snapshot(job.storage());
  snapshot.cache_->metadata = std::move(metadata);
  return snapshot;
}

}  // namespace torchsnapshot
