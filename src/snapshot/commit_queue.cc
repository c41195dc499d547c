#include "snapshot/commit_queue.h"

#include <sys/types.h>
#include <unistd.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "exec/fork_lock.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {

struct CommitTurn::Queue {
  std::mutex mutex;
  std::condition_variable_any changed;
  std::uint64_t next = 0;
  std::set<std::uint64_t> waiting;  ///< numbers of takes that have not ended

  /// The queue of a URL; it lives as long as somebody is in it.
  static std::shared_ptr<Queue> of(const std::string& url) {
    struct Queues {
      std::mutex mutex;
      std::map<std::pair<pid_t, std::string>, std::weak_ptr<Queue>> by_url;  ///< of this process, not of its parent
    };
    static Queues* all = [] {  // never destroyed: takes may be pending when static objects go
      auto* made = new Queues;
      lock_over_fork(made->mutex);
      return made;
    }();
    const std::lock_guard lock(all->mutex);
    std::erase_if(all->by_url, [](const auto& item) { return item.second.expired(); });
    std::weak_ptr<Queue>& known = all->by_url[{getpid(), url}];
    std::shared_ptr<Queue> queue = known.lock();
    if (!queue) known = queue = std::make_shared<Queue>();
    return queue;
  }
};

CommitTurn::CommitTurn(const std::string& url) : queue_(Queue::of(url)) {
  const std::lock_guard lock(queue_->mutex);
  number_ = queue_->next++;
  queue_->waiting.insert(number_);
}

CommitTurn::~CommitTurn() {
  const std::lock_guard lock(queue_->mutex);
  queue_->waiting.erase(number_);
  queue_->changed.notify_all();
}

void CommitTurn::wait(const std::stop_token& stop) {
  std::unique_lock lock(queue_->mutex);
  const bool is_first = queue_->changed.wait(lock, stop, [this] { return *queue_->waiting.begin() == number_; });
  if (!is_first) throw Error(ErrorCode::kCancelled, "cancelled while waiting for an earlier take to the same place");
}

}  // namespace torchsnapshot
