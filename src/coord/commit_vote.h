// The end of a take of several ranks: either it is committed on all of them, or it has failed on all of them.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "torchsnapshot/coordinator.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {

/// One rank's part in the vote on one take; its steps are in commit_vote.cc. All goes over the store, so that it can
/// happen in the background. One owner thread at a time; the coordinator's store outlives it.
class CommitVote {
 public:
  /// `take_id`: unique, the same on all ranks. `patience`: how long this rank waits for others, once it is ready;
  /// others than rank 0 a second more.
  CommitVote(Coordinator& coordinator, const std::string& take_id, std::chrono::milliseconds patience);
  CommitVote(const CommitVote&) = delete;
  CommitVote& operator=(const CommitVote&) = delete;

  /// Called between two looks at the store (IoOptions::poll); what it throws comes out of the waiting function.
  void set_poll(std::function<void()> poll) { poll_ = std::move(poll); }

  /// This rank has written all it has to.
  void arrive();
  /// On rank 0: blocks until all ranks have arrived. Throws the error of a rank that failed; Error(kIo) that names
  /// those that are late, and ends the take on all ranks; Error(kCancelled) on a stop.
  void wait_for_all(const std::stop_token& stop);
  /// On rank 0, after wait_for_all: from now on no rank can end the take. Throws the error of one that did.
  void begin_commit();
  /// On rank 0: the take is committed.
  void announce_commit();

  /// On the other ranks: blocks until rank 0 has committed. Throws as wait_for_all. When nothing is heard of rank 0,
  /// the take is ended for all ranks, unless rank 0 was about to commit: then may_be_committed() is true.
  void wait_for_verdict(const std::stop_token& stop);

  /// This rank has failed: ends the take on all ranks, if it has not ended yet. `maybe_committed`: nobody knows whether
  /// the metadata is there.
  void fail(const std::exception_ptr& error, bool maybe_committed = false) noexcept;

  /// True when the take has failed on another rank. A look at the store; from any thread, beside the owner's calls.
  [[nodiscard]] bool has_failed() const;
  /// How often has_failed() is worth asking; with many ranks more seldom, so that the store can answer all.
  [[nodiscard]] std::chrono::milliseconds watch_pause() const;
  /// After has_failed(): throws the error of the rank that failed, whatever has become of the store since.
  void throw_failure();

  /// After an error: other ranks, or what is on storage, may count as committed, so what was written has to stay.
  [[nodiscard]] bool may_be_committed() const noexcept { return may_be_committed_; }

 private:
  enum class Outcome : std::uint8_t { kValue, kLate };

  [[nodiscard]] std::string key(const std::string& name) const { return prefix_ + name; }
  using LookFn = std::function<std::optional<std::string>()>;
  /// Waits until there is a value; `kLate` after the rank's patience.
  Outcome wait_for(const LookFn& look, const std::stop_token& stop, std::string& value);
  /// Puts down the end of the take if there is none yet, and returns the one that counts.
  std::string decide(const std::string& decision);
  [[noreturn]] void throw_decision(const std::string& decision);
  [[nodiscard]] std::string late_ranks();
  void linger(std::chrono::milliseconds limit);
  void linger_after_failure();
  void leave() noexcept;

  Coordinator& coordinator_;
  KeyValueStore& store_;
  const std::string prefix_;
  const std::chrono::milliseconds patience_;
  std::function<void()> poll_;
  bool may_be_committed_ = false;
  bool committing_ = false;  ///< rank 0 has won the decision
  bool over_ = false;        ///< this rank knows the end
  mutable std::mutex seen_mutex_;
  mutable std::string seen_failure_;  ///< the verdict that has_failed() saw
};

/// Tells all ranks whether each is well (`error` empty) before they go on together. Throws the error of the first that
/// is not (this rank's own as "rank N: …" too). One exchange, two when there is an error. Collective.
void agree_all_well(Coordinator& coordinator, const std::string& error);

}  // namespace torchsnapshot
