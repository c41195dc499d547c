#include "auth/run_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>

#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::chrono::seconds kLimit{60};
constexpr std::size_t kMostOutput = 1 << 20;

/// A child that is killed unless it was waited for.
class Child {
 public:
  explicit Child(pid_t pid) : pid_(pid) {}
  ~Child() {
    if (pid_ == 0) return;
    ::kill(pid_, SIGKILL);
    wait();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  int wait() {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = 0;
    return status;
  }

 private:
  pid_t pid_;
};

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() { ::close(fd_); }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  [[nodiscard]] int get() const noexcept { return fd_; }

 private:
  int fd_;
};

}  // namespace

std::vector<std::string> split_command(std::string_view command) {
  std::vector<std::string> words;
  bool in_word = false;
  char quote = '\0';
  const auto word = [&]() -> std::string& {
    if (!in_word) words.emplace_back();
    in_word = true;
    return words.back();
  };
  for (std::size_t i = 0; i < command.size(); ++i) {
    const char c = command[i];
    if (quote != '\0') {
      if (c == quote) {
        quote = '\0';
      } else if (c == '\\' && quote == '"' && i + 1 < command.size() &&
                 std::strchr("\\\"$`", command[i + 1]) != nullptr) {
        word() += command[++i];
      } else {
        word() += c;
      }
    } else if (c == '\'' || c == '"') {
      word();
      quote = c;
    } else if (c == '\\' && i + 1 < command.size()) {
      word() += command[++i];
    } else if (c == ' ' || c == '\t') {
      in_word = false;
    } else {
      word() += c;
    }
  }
  if (quote != '\0') throw Error(ErrorCode::kInvalidArgument, "credential_process: a quote has no end");
  if (words.empty()) throw Error(ErrorCode::kInvalidArgument, "credential_process: the command is empty");
  return words;
}

std::string run_process(const std::vector<std::string>& words, const std::stop_token& stop, const std::string& what) {
  const auto fail = [&](const std::string& why) { throw Error(ErrorCode::kPermissionDenied, what + ": " + why); };
  std::vector<std::string> copies = words;
  std::vector<char*> argv;
  argv.reserve(copies.size() + 1);
  for (std::string& word : copies) argv.push_back(word.data());
  argv.push_back(nullptr);

  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw errno_error(errno, "pipe for " + what);
  const Fd output(ends[0]);
  pid_t pid = 0;
  int failed = 0;
  {
    const Fd input(ends[1]);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    ::posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    failed = ::posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
  }
  if (failed != 0) fail("'" + words[0] + "' can't be started: " + std::generic_category().message(failed));

  Child child(pid);
  std::string text;
  const auto deadline = std::chrono::steady_clock::now() + kLimit;
  for (;;) {
    if (stop.stop_requested()) throw Error(ErrorCode::kCancelled, what + ": cancelled");
    if (std::chrono::steady_clock::now() > deadline) fail("it took more than a minute");
    pollfd ready{.fd = output.get(), .events = POLLIN, .revents = 0};
    if (::poll(&ready, 1, 100) <= 0) continue;
    std::array<char, 4096> chunk;
    const ssize_t count = ::read(output.get(), chunk.data(), chunk.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    text.append(chunk.data(), static_cast<std::size_t>(count));
    if (text.size() > kMostOutput) fail("it printed more than 1 MiB");
  }
  const int status = child.wait();
  if (status != 0) {
    fail(WIFEXITED(status) ? "it ended with status " + std::to_string(WEXITSTATUS(status)) : "it was killed");
  }
  return text;
}

}  // namespace torchsnapshot
