#include <string>
#include <utility>

#include "coord/peer_error.h"
#include "snapshot/internal.h"
#include "snapshot/share_session.h"
#include "snapshot/take_job.h"
#include "snapshot/world_take.h"
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

std::string agree_on_url(Coordinator& ranks, const std::string& url, const NoticeFn& on_notice) {
  std::string agreed = ranks.broadcast(url);
  if (agreed != url && on_notice) {
    on_notice("rank 0 takes the snapshot to '" + agreed + "', and so does rank " + std::to_string(ranks.rank()) +
              ", which was told '" + url + "'");
  }
  return agreed;
}

void refuse_take(Coordinator& ranks, const Error& error) {
  refuse_world_take(ranks, encode_error(error));
  throw error;
}

void refuse_restore(Coordinator& ranks, const Error& error) {
  refuse_world_restore(ranks, error);
  throw error;
}

}  // namespace torchsnapshot
