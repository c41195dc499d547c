#include "net/http.h"

#include <gtest/gtest.h>

#include <thread>

#include "net/testing_server.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using namespace std::chrono_literals;

class Http : public testing::Test {
 protected:
  static void SetUpTestSuite() { server_ = new TestServer("object_server.py", {"--anonymous"}); }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }
  void SetUp() override { server_->clear(); }

  static HttpRequest request(const std::string& method, const std::string& path) {
    HttpRequest request;
    request.method = method;
    request.url = server_->url() + path;
    return request;
  }
  static HttpRequest put(const std::string& path, std::string_view content) {
    HttpRequest result = request("PUT", path);
    result.body = std::as_bytes(std::span(content));
    return result;
  }

  static HttpOptions quick() { return {.user_agent = "test/1", .connect_timeout = 5000ms, .stall_timeout = 300ms}; }

  static TestServer* server_;
  HttpClient client_{{.user_agent = "test/1"}};
};
TestServer* Http::server_ = nullptr;

TEST_F(Http, MethodsAndHeaders) {
  const std::string content(3'000'000, 'x');
  HttpResult result = client_.perform(put("/bucket/a", content), {});
  EXPECT_EQ(result.response.status, 200) << result.detail;
  EXPECT_NE(result.response.header("etag"), "");
  result = client_.perform(request("HEAD", "/bucket/a"), {});
  EXPECT_EQ(result.response.status, 200);
  EXPECT_EQ(result.response.header_number("content-length"), content.size());
  EXPECT_EQ(result.response.header_number("etag"), std::nullopt);
  EXPECT_EQ(result.response.header_number("none"), std::nullopt);
  result = client_.perform(request("GET", "/bucket/a"), {});
  EXPECT_TRUE(result.response.text == content);
  HttpRequest ranged = request("GET", "/bucket/a");
  ranged.headers = {{"Range", "bytes=1-3"}};
  EXPECT_EQ(client_.perform(ranged, {}).response.text, "xxx");
  EXPECT_EQ(client_.perform(put("/bucket/empty", ""), {}).response.status, 200);
  EXPECT_EQ(client_.perform(request("DELETE", "/bucket/a"), {}).response.status, 204);
  result = client_.perform(request("GET", "/bucket/a"), {});
  EXPECT_EQ(result.response.status, 404);
  EXPECT_NE(result.response.text.find("NoSuchKey"), std::string::npos);
  EXPECT_EQ(client_.perform(request("POST", "/bucket/b?uploads="), {}).response.status, 200);
  EXPECT_EQ(client_.requests(), 8U);
}

TEST_F(Http, PathsStayAsTheyAre) {
  EXPECT_EQ(client_.perform(put("/bucket/a/../b/./c", "1"), {}).response.status, 200);
  EXPECT_NE(client_.perform(request("GET", "/bucket?list-type=2"), {}).response.text.find("a/../b/./c"),
            std::string::npos);
  client_.perform(request("DELETE", "/bucket/a/../b/./c"), {});
}

TEST_F(Http, TheBodyGoesIntoTheSink) {
  client_.perform(put("/bucket/a", "0123456789"), {});
  std::string room(10, '-');
  HttpRequest get = request("GET", "/bucket/a");
  get.sink = std::as_writable_bytes(std::span(room));
  get.into_sink = [](const HttpResponse& head) { return head.status == 200; };
  HttpResult result = client_.perform(get, {});
  EXPECT_EQ(room, "0123456789");
  EXPECT_EQ(result.response.in_sink, 10U);
  EXPECT_EQ(result.response.text, "");
  get.sink = get.sink.first(4);
  EXPECT_EQ(client_.perform(get, {}).fault, TransportFault::kSurplus);
  get.url = server_->url() + "/bucket/none";
  result = client_.perform(get, {});
  EXPECT_EQ(result.response.in_sink, 0U);
  EXPECT_NE(result.response.text.find("NoSuchKey"), std::string::npos);
  HttpRequest limited = request("GET", "/bucket/a");
  limited.max_text = 9;
  EXPECT_EQ(client_.perform(limited, {}).fault, TransportFault::kTooLarge);
}

TEST_F(Http, ConnectionsAreKept) {
  const int before = server_->counts()["connections"];
  for (int i = 0; i < 20; ++i) client_.perform(request("HEAD", "/bucket/a"), {});
  EXPECT_LE(server_->counts()["connections"], before + 3);  // one of the client, two of the test's own questions
}

TEST_F(Http, SeveralThreads) {
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const std::string path = "/bucket/thread" + std::to_string(t);
      const std::string content(10'000, static_cast<char>('a' + t));
      for (int i = 0; i < 20; ++i) {
        EXPECT_EQ(client_.perform(put(path, content), {}).response.status, 200);
        EXPECT_TRUE(client_.perform(request("GET", path), {}).response.text == content);
      }
    });
  }
}

TEST_F(Http, FaultsOfTheTransfer) {
  HttpClient client(quick());
  const std::string content(2'000'000, 'x');
  client.perform(put("/bucket/a", content), {});
  const auto fault = [&](const nlohmann::json& injected, const HttpRequest& failing) {
    server_->inject(injected);
    return client.perform(failing, {}).fault;
  };
  const HttpRequest get = request("GET", "/bucket/a");
  EXPECT_EQ(fault({{"kind", "reset_download"}, {"at", 1000}}, get), TransportFault::kReset);
  EXPECT_EQ(fault({{"kind", "close_download"}, {"at", 1000}}, get), TransportFault::kCutOff);
  EXPECT_EQ(fault({{"kind", "stall_download"}, {"at", 1000}}, get), TransportFault::kStalled);
  EXPECT_EQ(fault({{"kind", "reset_upload"}, {"at", 500'000}}, put("/bucket/b", content)), TransportFault::kReset);
  EXPECT_EQ(fault({{"kind", "stall_upload"}, {"at", 1000}}, put("/bucket/b", content)), TransportFault::kStalled);
  EXPECT_EQ(fault({{"kind", "lose_response"}}, put("/bucket/b", content)), TransportFault::kReset);
  // A connection that the server closed meanwhile is replaced without a word.
  EXPECT_EQ(fault({{"kind", "close_after"}}, get), TransportFault::kNone);
  EXPECT_EQ(client.perform(get, {}).fault, TransportFault::kNone);
}

TEST_F(Http, NoServer) {
  HttpClient client(quick());
  HttpRequest nobody = request("GET", "/");
  nobody.url = "http://127.0.0.1:1/x";
  EXPECT_EQ(client.perform(nobody, {}).fault, TransportFault::kConnect);
  nobody.url = "http://no-such-host.invalid/x";
  EXPECT_EQ(client.perform(nobody, {}).fault, TransportFault::kResolve);
}

TEST_F(Http, AStopEndsARequestAtOnce) {
  HttpClient client({.user_agent = "test", .stall_timeout = 3'600'000ms});
  client.perform(put("/bucket/a", "0123456789"), {});
  server_->inject({{"kind", "stall_download"}, {"at", 3}});
  std::stop_source stop;
  std::jthread stopper([&] {
    std::this_thread::sleep_for(50ms);
    stop.request_stop();
  });
  EXPECT_EQ(client.perform(request("GET", "/bucket/a"), stop.get_token()).fault, TransportFault::kCancelled);
  EXPECT_EQ(client.perform(request("GET", "/bucket/a"), stop.get_token()).fault, TransportFault::kCancelled);
}

TEST(CurlLibrary, AMissingOneIsAClearError) {
  // In a process of its own: this one has the library loaded already.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        ::setenv("TORCHSNAPSHOT_LIBCURL", "/nowhere/libcurl.so", 1);
        try {
          const HttpClient client({.user_agent = "test"});
        } catch (const Error& error) {
          const std::string text = error.what();
          const bool told = error.code() == ErrorCode::kUnsupported &&
                            text.find("apt-get install libcurl4") != std::string::npos &&
                            text.find("/nowhere/libcurl.so") != std::string::npos;
          std::_Exit(told ? 0 : 2);
        }
        std::_Exit(1);
      },
      testing::ExitedWithCode(0), "");
}

TEST_F(Http, TheEndOfTheBodyIsTold) {
  const std::string content(3'000'000, 'x');
  HttpRequest sent = put("/bucket/sent", content);
  int times = 0;
  sent.on_sent = [&] { ++times; };
  EXPECT_EQ(client_.perform(sent, {}).response.status, 200);
  EXPECT_EQ(times, 1);
}

TEST_F(Http, WhatAFunctionOfTheRequestThrowsComesOut) {
  const std::string content(3'000'000, 'x');
  HttpRequest sent = put("/bucket/thrown", content);
  EXPECT_EQ(client_.perform(sent, {}).response.status, 200);
  sent.on_sent = [] { throw Error(ErrorCode::kInternal, "thrown"); };
  EXPECT_THROW(client_.perform(sent, {}), Error);
  HttpRequest get = request("GET", "/bucket/thrown");
  std::string out(content.size(), '-');
  get.sink = std::as_writable_bytes(std::span(out));
  get.into_sink = [](const HttpResponse&) { return true; };
  get.place = [](auto, auto) { throw Error(ErrorCode::kInternal, "thrown"); };
  EXPECT_THROW(client_.perform(get, {}), Error);
  // The connection of before is not used again.
  get.place = nullptr;
  EXPECT_EQ(client_.perform(get, {}).response.in_sink, content.size());
  EXPECT_TRUE(out == content);
}

}  // namespace
}  // namespace torchsnapshot
