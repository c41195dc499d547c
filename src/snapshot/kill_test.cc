// A real process is killed at random moments of takes over each other. The snapshot that is found is the last one that
// was taken, or the one under way.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <random>
#include <string>
#include <thread>

#include "snapshot/testing_state.h"
#include "storage/testing.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {
namespace {

constexpr int kKills = 200;

/// Takes one snapshot after the other, and tells the number of each that is committed.
[[noreturn]] void take_for_ever(const std::string& path, int first, bool asynchronous, int report_fd) {
  for (int number = first;; ++number) {
    const NumberedState state(number);
    if (asynchronous) {
      Snapshot::async_take(path, state.app).wait();
    } else {
      Snapshot::take(path, state.app);
    }
    if (write(report_fd, &number, sizeof number) != sizeof number) _exit(1);
  }
}

TEST(Kill, FindsTheLastOneOrTheNext) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer does not follow a fork";
#endif
  const TemporaryFolder folder;
  const std::string path = folder.path() / "snapshot";
  std::mt19937 random(1);
  int last = 0;
  int lost = 0;
  const auto start = std::chrono::steady_clock::now();
  Snapshot::take(path, NumberedState(last).app);
  // Long enough for some takes to come through, however slow the disk is.
  const auto longest =
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start) * 4 +
      std::chrono::milliseconds(20);
  for (int round = 0; round < kKills; ++round) {
    int pipe_fds[2];
    ASSERT_EQ(pipe(pipe_fds), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      close(pipe_fds[0]);
      take_for_ever(path, last + 1, round % 2 == 1, pipe_fds[1]);
    }
    close(pipe_fds[1]);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % static_cast<unsigned>(longest.count())));
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself";
    for (int number = 0; read(pipe_fds[0], &number, sizeof number) == sizeof number;) last = number;
    close(pipe_fds[0]);

    NumberedState found(-1);
    Snapshot(path).restore(found.app);
    const int number = found.restored_number();
    ASSERT_TRUE(number == last || number == last + 1) << number << " after " << last;
    if (number == last) ++lost;
    last = number;
  }
  EXPECT_GT(lost, 10) << "some were killed before their commit";
  EXPECT_GT(last, 20) << "and some were committed";
}

}  // namespace
}  // namespace torchsnapshot
