// The order in which the takes of this process to one place commit.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>

namespace torchsnapshot {

/// A place in the queue of a URL: takes commit in the order in which they were begun, so that the latest stays, and
/// each finds what the one before has left. Thread-safe.
class CommitTurn {
 public:
  explicit CommitTurn(const std::string& url);
  ~CommitTurn();  ///< leaves the queue
  CommitTurn(const CommitTurn&) = delete;
  CommitTurn& operator=(const CommitTurn&) = delete;

  /// Blocks until all takes that were begun before have ended. Throws Error(kCancelled) on a stop.
  void wait(const std::stop_token& stop);

 private:
  struct Queue;
  std::shared_ptr<Queue> queue_;
  std::uint64_t number_;
};

}  // namespace torchsnapshot
