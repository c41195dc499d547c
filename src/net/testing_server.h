// The test servers of tests/servers as a child process, for tests.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "net/http.h"

extern char** environ;

namespace torchsnapshot {

/// A server program on a free port of loopback; ends with this object (or this process: it watches its stdin).
class TestServer {
 public:
  /// `program`: a file of tests/servers.
  TestServer(const std::string& program, const std::vector<std::string>& arguments) {
    const auto script = std::filesystem::path(__FILE__).parent_path() / "../../tests/servers" / program;
    const char* const python = std::getenv("TORCHSNAPSHOT_TEST_PYTHON");
    std::vector<std::string> words{python != nullptr ? python : "python3", script.native()};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);

    std::array<int, 2> in{};
    std::array<int, 2> out{};
    if (::pipe2(in.data(), O_CLOEXEC) != 0 || ::pipe2(out.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe2");
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    ::posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    const int failed = ::posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(in[0]);
    ::close(out[1]);
    stdin_ = in[1];
    if (failed != 0) throw std::runtime_error("the test server needs " + words[0] + ", which can't be started");
    std::string line;
    char c = 0;
    while (::read(out[0], &c, 1) == 1 && c != '\n') line += c;
    ::close(out[0]);
    if (!line.starts_with("READY ")) throw std::runtime_error("the test server did not start: " + line);
    port_ = line.substr(6);
  }
  ~TestServer() {
    ::close(stdin_);
    int status = 0;
    ::waitpid(pid_, &status, 0);
  }
  TestServer(const TestServer&) = delete;
  TestServer& operator=(const TestServer&) = delete;

  [[nodiscard]] const std::string& port() const noexcept { return port_; }
  [[nodiscard]] std::string url(const std::string& scheme = "http") const { return scheme + "://127.0.0.1:" + port_; }

  /// {"kind": "status", "method": "PUT", ...}: see http_server.py.
  void inject(const nlohmann::json& fault) const { control("inject", fault); }
  void set(const nlohmann::json& settings) const { control("set", settings); }
  void clear() const { control("clear", nlohmann::json::object()); }
  /// {"requests": {...}, "faults": {...}, "connections": 3}
  [[nodiscard]] nlohmann::json counts() const {
    return nlohmann::json::parse(control("counts", nlohmann::json::object()));
  }
  /// An attribute of the server object.
  [[nodiscard]] nlohmann::json state(const std::string& name) const {
    return nlohmann::json::parse(control("get", {{"name", name}}));
  }
  /// How many requests of an operation came.
  [[nodiscard]] int count(const std::string& operation) const { return counts()["requests"].value(operation, 0); }
  [[nodiscard]] int fault_count(const std::string& kind) const { return counts()["faults"].value(kind, 0); }

 private:
  std::string control(const std::string& what, const nlohmann::json& content) const {
    HttpClient client({.user_agent = "test"});
    const std::string body = content.dump();
    HttpRequest request;
    request.method = "POST";
    request.url = url() + "/_control/" + what;
    request.body = std::as_bytes(std::span(body));
    request.bypass_proxy = true;
    const HttpResult result = client.perform(request, {});
    EXPECT_EQ(result.response.status, 200) << what << ": " << result.detail;
    return result.response.text;
  }

  pid_t pid_ = 0;
  int stdin_ = -1;
  std::string port_;
};

}  // namespace torchsnapshot
