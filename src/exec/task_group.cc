#include "exec/task_group.h"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>

#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::chrono::milliseconds kPollInterval{100};

}  // namespace

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_.notify_all();
  threads_.clear();
}

void ThreadPool::submit(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(task));
    // While the pool is being destroyed the threads that are there take what is left.
    if (queue_.size() > waiting_ && threads_.size() < most_ && !closing_) start_one();
  }
  wake_.notify_one();
}

/// With the mutex held.
void ThreadPool::start_one() {
  try {
    threads_.emplace_back([this] { run(); });
  } catch (const std::system_error& error) {
    if (!threads_.empty()) return;  // those do it all
    queue_.pop_back();
    throw errno_error(error.code().value(), "start a thread");
  }
}

void ThreadPool::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    ++waiting_;
    wake_.wait(lock, [this] { return closing_ || !queue_.empty(); });
    --waiting_;
    if (queue_.empty()) return;
    {
      const std::function<void()> task = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      task();
    }  // what the task holds goes before the lock is taken again: its destructors may submit
    lock.lock();
  }
}

TaskGroup::TaskGroup(ThreadPool& pool, std::stop_token outer)
    : pool_(pool), outer_(std::move(outer)), forward_(outer_, [this] { stop_.request_stop(); }) {}

TaskGroup::~TaskGroup() {
  stop_.request_stop();
  drain();
}

void TaskGroup::run(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    ++running_;
  }
  try {
    pool_.submit([this, task = std::move(task)]() mutable { execute(std::exchange(task, nullptr)); });
  } catch (...) {
    end_one();
    throw;
  }
}

void TaskGroup::execute(std::function<void()> task) noexcept {
  if (!stop_.stop_requested()) {
    try {
      task();
    } catch (...) {
      record(std::current_exception());
    }
  }
  // What the task holds (leases, buffers) is gone before the group counts it as ended.
  task = nullptr;
  end_one();
}

void TaskGroup::end_one() noexcept {
  // Notified under the lock: once the count is seen to be zero the group may be destroyed.
  const std::lock_guard lock(mutex_);
  if (--running_ == 0) ended_.notify_all();
}

void TaskGroup::wait(const std::function<void()>& poll) {
  if (poll) poll_until_ended(poll);
  drain();
  std::exception_ptr error;
  {
    const std::lock_guard lock(mutex_);
    error = error_;
  }
  if (error) std::rethrow_exception(error);
  if (outer_.stop_requested()) throw Error(ErrorCode::kCancelled, "cancelled by the caller");
}

void TaskGroup::poll_until_ended(const std::function<void()>& poll) {
  std::unique_lock lock(mutex_);
  while (!ended_.wait_for(lock, kPollInterval, [this] { return running_ == 0; })) {
    lock.unlock();
    try {
      poll();
    } catch (...) {
      record(std::current_exception());
      return;  // the tasks are told to stop; asking again would only throw again
    }
    lock.lock();
  }
}

void TaskGroup::record(std::exception_ptr error) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
  }
  // After the error is kept: what others throw because of the stop must not come first.
  stop_.request_stop();
}

void TaskGroup::drain() noexcept {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [this] { return running_ == 0; });
}

}  // namespace torchsnapshot
