#include "coord/failure_watch.h"

#include <chrono>
#include <exception>
#include <utility>

namespace torchsnapshot {

FailureWatch::FailureWatch(const CommitVote& vote, std::function<void()> on_failure)
    : vote_(vote), on_failure_(std::move(on_failure)), thread_([this] { watch(); }) {}

FailureWatch::~FailureWatch() {
  {
    const std::lock_guard lock(mutex_);
    is_over_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void FailureWatch::watch() {
  const auto pause = vote_.watch_pause();
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, pause, [this] { return is_over_; })) {
    lock.unlock();
    try {
      if (vote_.has_failed()) {
        seen_ = true;
        on_failure_();
        return;
      }
    } catch (const std::exception&) {
      return;  // the store is gone: the vote itself says so, with what that means
    }
    lock.lock();
  }
}

}  // namespace torchsnapshot
