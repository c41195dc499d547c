// While a rank writes: has another one failed? Then what it writes is in vain, and it ends at once.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "coord/commit_vote.h"

namespace torchsnapshot {

/// Looks at the vote now and then, on a thread of its own, until it is destroyed or has seen a failure. The vote
/// outlives it.
class FailureWatch {
 public:
  /// `on_failure` is called once, on the thread of the watch, when the take has failed on another rank.
  FailureWatch(const CommitVote& vote, std::function<void()> on_failure);
  ~FailureWatch();  ///< ends the thread; on_failure is not called any more
  FailureWatch(const FailureWatch&) = delete;
  FailureWatch& operator=(const FailureWatch&) = delete;

  [[nodiscard]] bool has_seen_failure() const noexcept { return seen_; }

 private:
  void watch();

  const CommitVote& vote_;
  std::function<void()> on_failure_;
  std::atomic<bool> seen_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_over_ = false;
  std::thread thread_;  ///< the last: it uses all others
};

}  // namespace torchsnapshot
