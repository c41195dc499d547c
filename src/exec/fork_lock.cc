#include "exec/fork_lock.h"

#include <pthread.h>

#include <vector>

namespace torchsnapshot {
namespace {

struct ForkLocks {
  std::mutex mutex;
  std::vector<std::mutex*> locks;
};

ForkLocks& all() {
  static auto* locks = new ForkLocks;
  return *locks;
}

void before_fork() {
  all().mutex.lock();
  for (std::mutex* lock : all().locks) lock->lock();
}

void after_fork() {
  for (std::mutex* lock : all().locks) lock->unlock();
  all().mutex.unlock();
}

}  // namespace

void lock_over_fork(std::mutex& mutex) {
  static const bool registered = pthread_atfork(before_fork, after_fork, after_fork) == 0;
  static_cast<void>(registered);
  const std::lock_guard lock(all().mutex);
  all().locks.push_back(&mutex);
}

}  // namespace torchsnapshot
