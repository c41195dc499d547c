// One take, in the steps of the commit protocol.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "coord/commit_vote.h"
#include "coord/failure_watch.h"
#include "pipeline/write_pipeline.h"
#include "plan/world_parts.h"
#include "plan/write_plan.h"
#include "snapshot/commit_queue.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {

/// From an app state to a committed snapshot; of several ranks, this one's part in it. One owner thread at a time. An
/// error in a step, on any rank, leaves no snapshot, and the old one as it was; its message says which take it was.
/// Destroyed before finish(), it removes what was written.
class TakeJob {
 public:
  /// Plans, and checks `app`; with several ranks, together with them (collective). Nothing is written yet.
  TakeJob(std::shared_ptr<Storage> storage, const AppState& app, const TakeOptions& options, Staging staging);
  ~TakeJob();
  TakeJob(const TakeJob&) = delete;
  TakeJob& operator=(const TakeJob&) = delete;

  /// For all but Staging::kWhereNeeded: when it returns, the app state may change (but for what is promised not to).
  void stage();
  /// See WritePipeline.
  [[nodiscard]] std::shared_ptr<LazyCopies> lazy_copies() const noexcept { return pipeline_->lazy_copies(); }
  [[nodiscard]] std::shared_ptr<DeviceStaging> device_staging() const noexcept { return pipeline_->device_staging(); }
  /// Writes what is left to write, and commits. Returns the metadata; null on other ranks than 0, which don't have it.
  std::shared_ptr<const SnapshotMetadata> finish();
  /// From now on nobody is asked between waits (IoOptions::poll), as the calling thread is another.
  void stop_polling() {
    pipeline_->stop_polling();
    if (vote_) vote_->set_poll(nullptr);
  }

  [[nodiscard]] const std::shared_ptr<Storage>& storage() const noexcept { return storage_; }

 private:
  template <typename Step>
  auto step(const Step& step);
  void plan(const AppState& app, const TakeOptions& options);
  [[nodiscard]] bool publishes() const noexcept { return rank_ == 0; }
  void complete_metadata();
  std::vector<std::string> commit();
  void fail(const std::exception_ptr& error) noexcept;
  /// `error`, or that of another rank if it was the cause.
  [[nodiscard]] std::exception_ptr cause_of(const std::exception_ptr& error) noexcept;
  void write_checksums(const ChecksumTables& tables);
  void write_metadata_index();
  void write_object(const std::string& location, std::string_view content);
  void write_beside_data(const std::string& location, std::string content);
  void create(const std::string& location, std::string_view content) const;
  void seal_metadata();
  void publish();
  void clean_up() noexcept;
  /// On rank 0 of several, after a failure.
  void remove_left_by_others();

  std::shared_ptr<Storage> storage_;
  const std::stop_token callers_stop_;
  std::stop_source stop_;  ///< of all that is done here: by the caller, or because another rank has failed
  std::stop_callback<std::function<void()>> forward_;
  IoOptions io_;
  std::function<void()> on_copied_;
  std::shared_ptr<Coordinator> ranks_;  ///< null: this process alone
  std::int64_t rank_ = 0;
  std::string take_id_;
  WritePlan plan_;
  std::shared_ptr<const WorldParts> parts_;  ///< of the metadata, on rank 0 of several
  std::vector<ReplicatedLeaf> replicated_;   ///< for parts_
  std::shared_ptr<SnapshotMetadata> metadata_;
  std::string text_;                  ///< of the metadata
  std::uint64_t index_entries_ = 0;   ///< metadata of so many has an index
  std::vector<std::string> written_;  ///< removed again if the take fails
  bool is_over_ = false;              ///< committed, perhaps
  std::optional<CommitTurn> turn_;    ///< of the one that publishes
  std::unique_ptr<CommitVote> vote_;  ///< with several ranks
  std::unique_ptr<WritePipeline> pipeline_;
  std::unique_ptr<FailureWatch> watch_;  ///< with several ranks, while this one writes
};

}  // namespace torchsnapshot
