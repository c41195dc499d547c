// What is under way in this process, for those who have to find it.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "exec/fork_lock.h"

namespace torchsnapshot {

/// Objects of one kind that work in the background. It does not keep them. A forked child, which lacks its parent's
/// threads, starts with none. Lives as long as the process, as work may be pending when static objects go.
/// Thread-safe.
template <typename T>
class PendingList {
 public:
  PendingList() { lock_over_fork(mutex_); }
  ~PendingList() = delete;
  PendingList(const PendingList&) = delete;
  PendingList& operator=(const PendingList&) = delete;

  void add(std::weak_ptr<T> one) {
    const std::lock_guard lock(mutex_);
    leave_parent();
    std::erase_if(all_, [](const auto& other) { return other.expired(); });
    all_.push_back(std::move(one));
    count_.store(all_.size());
  }

  /// Those that are there. Who waits for one of them must not keep others from coming: no lock is held.
  [[nodiscard]] std::vector<std::shared_ptr<T>> all() {
    std::vector<std::shared_ptr<T>> found;
    if (count_.load() == 0) return found;  // cheap for those who never have any
    const std::lock_guard lock(mutex_);
    leave_parent();
    for (const auto& one : all_) {
      if (auto alive = one.lock()) found.push_back(std::move(alive));
    }
    return found;
  }

 private:
  void leave_parent() {
    if (owner_ == getpid()) return;
    owner_ = getpid();
    all_.clear();
    count_.store(0);
  }

  std::mutex mutex_;
  pid_t owner_ = getpid();
  std::vector<std::weak_ptr<T>> all_;
  std::atomic<std::size_t> count_{0};
};

}  // namespace torchsnapshot
