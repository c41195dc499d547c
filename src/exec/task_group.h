// Threads, and groups of tasks that end together.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

namespace torchsnapshot {

/// Threads that run tasks in the order given; one is started when there are more tasks than threads that wait for some.
/// The destructor finishes what is queued (also what those tasks queue) and joins. Thread-safe.
class ThreadPool {
 public:
  /// `most`: threads at most; 0 counts as 1.
  explicit ThreadPool(std::size_t most) noexcept : most_(most == 0 ? 1 : most) {}
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  /// Queues a task; it must not throw. Throws Error when the system refuses the first thread; it may refuse others.
  void submit(std::function<void()> task);

 private:
  void run();
  void start_one();

  const std::size_t most_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  std::size_t waiting_ = 0;  ///< threads that wait for a task
  bool closing_ = false;
  std::vector<std::jthread> threads_;
};

/// Tasks on a pool that succeed or fail as one. The first exception is kept, stops the group's token, and is
/// rethrown by wait(); tasks that had not started by then are skipped. The outer token stops the group too.
/// run() and wait() are for one owner thread; tasks may call run() as well, but not wait(). A task and all it
/// holds are destroyed before wait() returns, so a task may use what the owner destroys afterwards.
class TaskGroup {
 public:
  TaskGroup(ThreadPool& pool, std::stop_token outer);
  ~TaskGroup();  ///< stops and waits; an error that nobody asked for is dropped
  TaskGroup(const TaskGroup&) = delete;
  TaskGroup& operator=(const TaskGroup&) = delete;

  void run(std::function<void()> task);
  /// Blocks until every task has ended. Throws the first error, or Error(kCancelled) if the outer
  /// token was the reason to stop. After that the group stays stopped; another wait() throws the same.
  /// `poll`, if there is one, is called ten times a second by the waiting thread; what it throws counts as an error.
  void wait(const std::function<void()>& poll = nullptr);
  [[nodiscard]] std::stop_token stop_token() const noexcept { return stop_.get_token(); }

 private:
  void execute(std::function<void()> task) noexcept;
  void end_one() noexcept;
  void record(std::exception_ptr error) noexcept;
  void poll_until_ended(const std::function<void()>& poll);
  void drain() noexcept;

  ThreadPool& pool_;
  std::stop_source stop_;
  std::stop_token outer_;
  std::stop_callback<std::function<void()>> forward_;
  std::mutex mutex_;
  std::condition_variable ended_;
  std::size_t running_ = 0;
  std::exception_ptr error_;
};

}  // namespace torchsnapshot
