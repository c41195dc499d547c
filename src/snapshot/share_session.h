// The meetings of the ranks of a restore.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <vector>

#include "plan/share_plan.h"
#include "torchsnapshot/coordinator.h"
#include "torchsnapshot/corruption.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {

/// Thrown on a rank when another one has failed; which, and why, the end of the restore tells.
class PeerFailed final : public std::exception {
 public:
  [[nodiscard]] const char* what() const noexcept override { return "another rank has failed"; }
};

/// What the ranks of a restore agree on while it goes on; the steps are in share_session.cc. Collective: all ranks make
/// the same calls. Each throws PeerFailed when a rank is not well. For one thread.
class ShareSession {
 public:
  explicit ShareSession(Coordinator& ranks) noexcept : ranks_(ranks) {}
  ShareSession(const ShareSession&) = delete;
  ShareSession& operator=(const ShareSession&) = delete;

  /// Every rank is about to read. Whether they read for each other: if all of them want it. `budget`: this rank's, in
  /// bytes.
  bool begin(bool wants_to_share, std::uint64_t budget);
  [[nodiscard]] bool is_sharing() const noexcept { return is_sharing_; }
  /// How much goes round at once, by the smallest budget.
  [[nodiscard]] std::uint64_t round_bytes() const noexcept { return round_bytes_; }
  [[nodiscard]] Coordinator& ranks() const noexcept { return ranks_; }

  /// What all ranks want.
  ReadWants agree(const ReadWants& mine);
  /// Every rank has read what it hands round next. On the last round, `found` is what each found damaged: afterwards it
  /// is what the others found.
  void meet(bool is_last, std::vector<Corruption>& found);
  /// There will be no more meetings. Not collective.
  void finish() noexcept { is_over_ = true; }

  /// For a rank that has failed: tells the others where they meet next, if they do. What fails in it is not told.
  void refuse() noexcept;

 private:
  static constexpr std::size_t kWords = 6;
  using Words = std::array<std::uint64_t, kWords>;

  /// The sums; the first is how many are not well.
  Words meet_with(const Words& mine);
  /// Every rank's bytes, or nothing when they are too much for all.
  std::vector<std::string> exchange(const std::string& mine);

  Coordinator& ranks_;
  bool is_sharing_ = false;
  bool is_over_ = false;
  std::uint64_t round_bytes_ = 0;
};

/// The end of a restore: throws the error of the first rank that failed; for this rank's `error`, if there is one,
/// that. Collective.
void end_restore(Coordinator& ranks, const std::exception_ptr& error);

/// For a rank that can't begin while the others do: joins the restore with `error`, and so ends it on all.
void refuse_world_restore(Coordinator& ranks, const Error& error);

}  // namespace torchsnapshot
