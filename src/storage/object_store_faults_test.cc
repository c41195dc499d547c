// Every fault that networks and stores are known for: survived, or a clear error; never a hang, never a short object.
#include <gtest/gtest.h>

#include <iomanip>
#include <iostream>
#include <map>
#include <random>
#include <thread>

#include "integrity/crc32c.h"
#include "storage/testing.h"
#include "storage/testing_store.h"

namespace torchsnapshot {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using Strings = std::vector<std::string>;

constexpr std::size_t kPart = 5 << 20;

/// Short limits: a test of a stall should not take longer than the stall has to.
StoreSettings quick(StoreKind kind = StoreKind::kS3) {
  static int places = 0;
  StoreSettings settings = settings_for(kind, "faults/" + std::to_string(++places));
  settings.stall_timeout = 1'000ms;
  settings.connect_timeout = 5'000ms;
  settings.retry_base = 2ms;
  return settings;
}

/// Every fault that was put in, by name: how many requests it hit, and what came of them. Printed at the end; the table
/// in docs/object-stores.md is made of it.
struct Tally {
  int survived = 0;
  int reported = 0;
};

class Faults : public testing::Test {
 protected:
  static void TearDownTestSuite() {
    int survived = 0;
    int reported = 0;
    std::cout << "faults that were put in:                              survived  reported\n";
    for (const auto& [name, tally] : tallies()) {
      std::cout << "  " << std::left << std::setw(50) << name << std::right << std::setw(10) << tally.survived
                << std::setw(10) << tally.reported << "\n";
      survived += tally.survived;
      reported += tally.reported;
    }
    std::cout << "  " << std::left << std::setw(50) << "all" << std::right << std::setw(10) << survived << std::setw(10)
              << reported << "\n";
  }
  static std::map<std::string, Tally>& tallies() {
    static std::map<std::string, Tally> all;
    return all;
  }
  static void survived(const std::string& name, int times = 1) { tallies()[name].survived += times; }
  static void reported(const std::string& name, int times = 1) { tallies()[name].reported += times; }
  static std::string name_of(const json& fault) {
    const std::string kind = fault["kind"];
    if (kind == "status") return "status " + std::to_string(fault.value("status", 503));
    static const std::map<std::string, std::string> names{{"lose_response", "answer lost after the work was done"},
                                                          {"reset_upload", "reset at some byte of an upload"},
                                                          {"reset_download", "reset at some byte of a download"},
                                                          {"close_download", "end at some byte of a download"},
                                                          {"close_after", "connection closed between requests"},
                                                          {"stall_upload", "stall in an upload"},
                                                          {"stall_download", "stall in a download"},
                                                          {"error_in_200", "200 with an error in it"}};
    return names.at(kind);
  }

  void SetUp() override { reset(); }
  void TearDown() override { reset(); }
  static void reset() {
    server().set({{"region", "us-east-1"},
                  {"clock_offset", 0.0},
                  {"expired_tokens", json::array()},
                  {"forbidden", ""},
                  {"ignore_conditions", false},
                  {"ignore_ranges", false},
                  {"refuse_checksum_headers", false}});
    server().clear();
  }

  /// Writes and reads objects of one part and of several through the fault, and looks at them again without it.
  static void expect_survived(const json& fault, int times = 1) {
    SCOPED_TRACE(fault.dump());
    const StoreSettings settings = quick();
    const auto storage = store(settings);
    const std::string small = random_text(70'000, 1);
    const std::string large = random_text(2 * kPart + 12'345, 2);
    server().clear();
    server().inject(fault);
    put(*storage, "small", small);
    put(*storage, "large", large);
    EXPECT_TRUE(get(*storage, "small") == small);
    const auto reader = storage->open("large", {});
    std::string middle(kPart, '-');
    reader->read(kPart / 2, std::as_writable_bytes(std::span(middle)));
    EXPECT_TRUE(middle == large.substr(kPart / 2, kPart));
    storage->publish("meta", "content");
    EXPECT_EQ(storage->list(""), (Strings{"large", "meta", "small"}));
    storage->sizes(Strings{"large", "small"}, {});
    storage->remove(Strings{"meta"});
    EXPECT_EQ(server().fault_count(fault["kind"]), times);
    server().clear();
    const auto again = store(settings);
    EXPECT_TRUE(get(*again, "large") == large);
    EXPECT_TRUE(get(*again, "small") == small);
    EXPECT_EQ(again->list(""), (Strings{"large", "small"}));
    if (!HasFailure()) survived(name_of(fault), times);
  }
};

TEST_F(Faults, StormsOfErrors) {
  const std::vector<std::pair<int, const char*>> errors = {
      {500, "InternalError"},  {502, "BadGateway"},      {503, "SlowDown"},       {503, "ServiceUnavailable"},
      {504, "GatewayTimeout"}, {429, "TooManyRequests"}, {400, "RequestTimeout"}, {409, "OperationAborted"}};
  for (const auto& [status, code] : errors) {
    expect_survived({{"kind", "status"}, {"status", status}, {"code", code}, {"count", 6}}, 6);
  }
}

TEST_F(Faults, EachOperationSurvives) {
  for (const auto& [method, query] : std::vector<std::pair<std::string, std::string>>{{"PUT", ""},
                                                                                      {"PUT", "partNumber=2"},
                                                                                      {"POST", "uploads"},
                                                                                      {"POST", "uploadId"},
                                                                                      {"GET", ""},
                                                                                      {"GET", "list-type"},
                                                                                      {"HEAD", ""},
                                                                                      {"DELETE", ""}}) {
    const json where{{"method", method}, {"query", query}};
    json fault{{"kind", "status"}, {"count", 2}};
    fault.update(where);
    expect_survived(fault, 2);
    json lost{{"kind", "lose_response"}};
    lost.update(where);
    expect_survived(lost);
  }
}

// A retried conditional write meets its own success. It must be told from another writer's object.
TEST_F(Faults, ALostAnswerIsNotTakenForAnotherWriter) {
  const auto storage = store(quick());
  server().inject({{"kind", "lose_response"}, {"method", "PUT"}});
  put(*storage, "x", "content");  // expect_survived covers the rest
  EXPECT_EQ(server().count("error PreconditionFailed"), 1);
  survived("answer lost after the work was done");
  const auto writer = storage->create("y", 1, {});
  writer->write(0, bytes_of("1"));
  const std::string key = storage->url().substr(std::string("s3://bucket/").size()) + "/y";
  api_of(settings_for(StoreKind::kS3, ""))->put(key, bytes_of("2"), false, {});
  expect_error(ErrorCode::kAlreadyExists, {key, "it exists"}, [&] { writer->finish(); });
  EXPECT_EQ(get(*storage, "y"), "2");
  reported("another writer's object");
}

TEST_F(Faults, RetryAfterIsHeeded) {
  const auto storage = store(quick());
  server().inject({{"kind", "status"}, {"headers", {{"Retry-After", "1"}}}});
  const auto start = std::chrono::steady_clock::now();
  put(*storage, "x", "content");
  EXPECT_GE(std::chrono::steady_clock::now() - start, 1s);  // no upper bound: the machine may be slow
  survived("Retry-After");
}

TEST_F(Faults, ConnectionsThatBreakAtAnyByte) {
  std::mt19937 random(5);
  for (int i = 0; i < 6; ++i) {
    const auto at = static_cast<int>(i == 0 ? 0 : random() % 69'000);
    expect_survived({{"kind", "reset_upload"}, {"method", "PUT"}, {"at", at}});
    expect_survived({{"kind", "reset_download"}, {"method", "GET"}, {"path", "small"}, {"at", at}});
    expect_survived({{"kind", "close_download"}, {"method", "GET"}, {"path", "small"}, {"at", at}});
  }
  expect_survived({{"kind", "reset_upload"}, {"query", "partNumber=2"}, {"at", 3'000'001}});
  expect_survived({{"kind", "reset_download"}, {"method", "GET"}, {"path", "large"}, {"at", 2'000'001}});
  expect_survived({{"kind", "close_after"}, {"count", 8}}, 8);
}

TEST_F(Faults, OnlyTheRestIsFetchedAgain) {
  const auto storage = store(quick());
  const std::string content = random_text(4'000'000, 3);
  put(*storage, "x", content);
  const auto reader = storage->open("x", {});
  server().clear();
  for (int i = 0; i < 5; ++i) {
    server().inject({{"kind", i % 2 == 0 ? "reset_download" : "close_download"}, {"at", 600'000}});
  }
  std::string out(3'500'000, '-');
  reader->read(500'000, std::as_writable_bytes(std::span(out)));
  EXPECT_TRUE(out == content.substr(500'000));
  EXPECT_EQ(server().count("GetObject"), 6);
  const json headers = server().state("last_headers");
  const std::string range = headers["GetObject"]["range"];
  EXPECT_GT(std::stoul(range.substr(6)), 2'500'000U) << range;
  survived("reset at some byte of a download", 3);
  survived("end at some byte of a download", 2);
}

TEST_F(Faults, BytesPassTheirPlacerOnceThroughBrokenDownloads) {
  const auto storage = store(quick());
  const std::string content = random_text(1 << 20, 9);
  put(*storage, "x", content);
  const auto reader = storage->open("x", {});
  // The last place: all bytes have come, and yet the answer ended badly.
  for (const char* kind : {"reset_download", "close_download"}) {
    for (const int at : {1, 70'001, 600'000, (1 << 20) - 1, 1 << 20}) {
      server().inject({{"kind", kind}, {"at", at}});
      std::string out(content.size(), '-');
      std::string seen;
      reader->read_placing(0, std::as_writable_bytes(std::span(out)),
                           [&](std::uint64_t offset, std::span<std::byte> dst, std::span<const std::byte> src) {
                             EXPECT_EQ(offset, seen.size());
                             seen.append(reinterpret_cast<const char*>(src.data()), src.size());
                             std::copy(src.begin(), src.end(), dst.begin());
                           });
      EXPECT_TRUE(seen == content) << kind << ' ' << at;
      EXPECT_TRUE(out == content) << kind << ' ' << at;
      EXPECT_EQ(server().fault_count(kind), 1);
      server().clear();
      survived(name_of({{"kind", kind}}));
    }
  }
}

TEST_F(Faults, StallsAreFound) {
  expect_survived({{"kind", "stall_upload"}, {"method", "PUT"}, {"at", 1000}});
  expect_survived({{"kind", "stall_download"}, {"method", "GET"}, {"at", 1000}, {"path", "large"}});
  expect_survived({{"kind", "stall_download"}, {"method", "GET"}, {"at", 0}});
}

TEST_F(Faults, ASlowLinkIsNoStall) {
  const auto storage = store(quick());
  const std::string content = random_text(300'000, 4);
  put(*storage, "x", content);
  server().inject({{"kind", "slow"}, {"rate", 150'000}});  // twice the stall timeout
  EXPECT_TRUE(get(*storage, "x") == content);
  EXPECT_EQ(server().count("GetObject"), 1);
  survived("slow link");
}

TEST_F(Faults, AnErrorInA200) {
  expect_survived({{"kind", "error_in_200"}, {"method", "POST"}, {"query", "uploadId"}, {"code", "InternalError"}});
  const auto storage = store(quick());
  server().inject({{"kind", "error_in_200"}, {"method", "POST"}, {"query", "uploadId"}, {"code", "AccessDenied"}});
  const std::string content(kPart + 1, 'x');
  expect_error(ErrorCode::kIo, {"CompleteMultipartUpload", "AccessDenied"}, [&] { put(*storage, "x", content); });
  EXPECT_TRUE(storage->list("").empty());
  reported("200 with an error in it");
}

TEST_F(Faults, ABitThatFlipsOnTheWayUpIsFoundByTheStore) {
  const auto storage = store(quick());
  server().inject({{"kind", "flip_upload"}, {"method", "PUT"}, {"at", 17}});
  put(*storage, "x", random_text(1000, 1));
  EXPECT_EQ(get(*storage, "x"), random_text(1000, 1));
  EXPECT_EQ(server().count("error BadDigest"), 1);
  server().inject({{"kind", "flip_upload"}, {"method", "PUT"}, {"at", 17}, {"count", 100}});
  expect_error(ErrorCode::kIo, {"PutObject", "BadDigest", "4x 400 BadDigest", "memory and network"},
               [&] { put(*storage, "y", "a content that is damaged each time"); });
  survived("bit flipped on the way up");
  reported("bit flipped on the way up", 4);
}

TEST_F(Faults, ASumThatTheCallerHasIsTheOneThatIsSent) {
  constexpr std::size_t kSmallPart = 100'000;  // a size of which the server checks the sums
  StoreSettings settings = quick();
  settings.part_bytes = kSmallPart;
  const auto storage = store(settings);
  const std::string content = random_text(2 * kSmallPart, 5);
  const auto bytes = std::as_bytes(std::span(content));
  const auto first = bytes.first(kSmallPart);
  const auto second = bytes.subspan(kSmallPart);
  const auto write_second = [&](std::uint32_t crc) {
    const auto writer = storage->create("x", content.size(), {});
    writer->write_summed(0, first, crc32c(0, first));
    writer->write_summed(kSmallPart, second, crc);
  };
  write_second(crc32c(0, second));
  // Memory that changed since it was summed, too, is found by the store.
  expect_error(ErrorCode::kIo, {"UploadPart", "BadDigest"}, [&] { write_second(crc32c(0, first)); });
  // The sum of a block is not that of its parts.
  storage->create("y", content.size(), {})->write_summed(0, bytes, crc32c(0, bytes));
}

TEST_F(Faults, ClocksThatDiffer) {
  for (const double offset : {4000.0, -4000.0}) {
    server().set({{"clock_offset", offset}});
    server().clear();
    const auto storage = store(quick());
    put(*storage, "x", "content");
    EXPECT_EQ(get(*storage, "x"), "content");
    EXPECT_GE(server().count("error RequestTimeTooSkewed"), 1);
    EXPECT_LE(server().count("error RequestTimeTooSkewed"), 2);  // once by HEAD, once by the GET that asks why
    survived("clock that is wrong");
  }
}

TEST_F(Faults, ExpiredTokensAreRenewed) {
  class Renewing final : public CredentialSource {
   public:
    [[nodiscard]] std::string name() const override { return "the test"; }
    Credentials fetch(const std::stop_token&) override {
      return {.key = AwsKey{"AKIDTEST", kSecret, "token-" + std::to_string(++fetched)}, .bearer = "", .expires = {}};
    }
    int fetched = 0;
  };
  auto source = std::make_unique<Renewing>();
  const Renewing& renewing = *source;
  const auto client = std::make_shared<StoreClient>(quick(), std::make_shared<CredentialKeeper>(std::move(source)));
  const auto storage = make_object_store(make_xml_api(client));
  server().set({{"expired_tokens", {"token-1"}}});
  put(*storage, "x", "content");
  EXPECT_EQ(get(*storage, "x"), "content");
  EXPECT_EQ(renewing.fetched, 2);
  server().set({{"expired_tokens", {"token-2", "token-3"}}});
  expect_error(ErrorCode::kPermissionDenied, {"ExpiredToken", "renew the credentials", "the test"},
               [&] { get(*storage, "x"); });
  survived("expired token");
  reported("expired token");
}

TEST_F(Faults, AnotherRegion) {
  server().set({{"region", "eu-west-7"}});
  const auto storage = store(quick());
  put(*storage, "x", "content");
  EXPECT_EQ(get(*storage, "x"), "content");
  EXPECT_LE(server().count("error AuthorizationHeaderMalformed"), 2);  // it is remembered
  survived("wrong region");
}

TEST_F(Faults, Redirections) {
  const auto storage = store(quick());
  const std::string target = server().url() + "/bucket/" + storage->url().substr(std::string("s3://bucket/").size());
  server().inject({{"kind", "status"},
                   {"status", 307},
                   {"code", "TemporaryRedirect"},
                   {"method", "PUT"},
                   {"headers", {{"Location", target + "/elsewhere"}}}});
  put(*storage, "x", "content");
  EXPECT_EQ(get(*storage, "elsewhere"), "content");
  server().inject({{"kind", "status"}, {"status", 301}, {"code", "PermanentRedirect"}, {"count", 100}});
  expect_error(ErrorCode::kIo, {"301 PermanentRedirect", "region"}, [&] { get(*storage, "x"); });
  survived("redirection");
  reported("redirection without an end");
}

TEST_F(Faults, WhatCanNotBeRetriedSaysWhatToDo) {
  StoreSettings settings = quick();
  settings.bucket = "no-such-bucket";
  expect_error(ErrorCode::kNotFound,
               {"GetObject s3://no-such-bucket/faults/", "404 NoSuchBucket", "request id REQ", "create the bucket"},
               [&] { get(*store(settings), "x"); });
  server().set({{"forbidden", "secret-place"}});
  settings = quick();
  settings.prefix += "/secret-place";
  expect_error(ErrorCode::kPermissionDenied,
               {"403 AccessDenied: Access Denied", "request id REQ", "the test", "permission for GetObject"},
               [&] { store(settings)->create("x", 1, {}); });
  expect_error(ErrorCode::kPermissionDenied, {"PutObject", "permission for PutObject"},
               [&] { store(settings)->publish("x", ""); });
  const auto client = std::make_shared<StoreClient>(
      quick(),
      std::make_shared<CredentialKeeper>(fixed_credentials(
          {.key = AwsKey{"AKIDTEST", "not-the-secret", "a-token"}, .bearer = "", .expires = {}}, "profile x")));
  try {
    get(*make_object_store(make_xml_api(client)), "x");
    FAIL();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("SignatureDoesNotMatch"), std::string::npos) << text;
    EXPECT_NE(text.find("profile x"), std::string::npos) << text;
    for (const char* secret : {"not-the-secret", "a-token", "AKIDTEST", "AWS4-HMAC"}) {
      EXPECT_EQ(text.find(secret), std::string::npos) << text;
    }
  }
  settings = quick();
  settings.kind = StoreKind::kGoogleXml;
  const auto google = std::make_shared<StoreClient>(
      settings, std::make_shared<CredentialKeeper>(
                    fixed_credentials({.key = {}, .bearer = "wrong-token", .expires = {}}, "metadata server")));
  expect_error(ErrorCode::kPermissionDenied, {"gs://bucket/", "401", "metadata server"},
               [&] { get(*make_object_store(make_xml_api(google)), "x"); });
  reported("missing bucket");
  reported("no permission", 2);
  reported("wrong secret or token", 2);
}

TEST_F(Faults, NoServerAndNoHost) {
  StoreSettings settings = quick();
  settings.endpoint = parse_http_url("http://127.0.0.1:1", "e");
  expect_error(ErrorCode::kIo, {"no connection", "127.0.0.1:1", "4x no connection", "endpoint_url"},
               [&] { get(*store(settings), "x"); });
  settings.endpoint = parse_http_url("http://no-such-host.invalid", "e");
  expect_error(ErrorCode::kIo, {"host name not found", "no-such-host.invalid", "name service"},
               [&] { get(*store(settings), "x"); });
  reported("nobody listens");
  reported("no such host");
}

TEST_F(Faults, TheDeadlineEndsAStormWithCounts) {
  StoreSettings settings = quick();
  settings.retry_timeout = 150ms;
  server().inject({{"kind", "status"}, {"count", 100'000}});
  expect_error(ErrorCode::kIo, {"503 SlowDown", "attempts in", "x 503 SlowDown", "overloaded"},
               [&] { get(*store(settings), "x"); });
  reported("storm longer than retry_timeout");
}

TEST_F(Faults, AStopEndsEverything) {
  StoreSettings settings = quick();
  settings.stall_timeout = 3'600'000ms;
  const auto storage = store(settings);
  put(*storage, "x", random_text(300'000, 1));
  for (const char* kind : {"stall_download", "status"}) {
    server().inject({{"kind", kind}, {"at", 100}, {"count", 100'000}, {"headers", {{"Retry-After", "60"}}}});
    std::stop_source stop;
    std::jthread stopper([&] {
      std::this_thread::sleep_for(30ms);
      stop.request_stop();
    });
    expect_error(ErrorCode::kCancelled, {"cancelled"}, [&] { storage->read_all("x", 1 << 20, stop.get_token()); });
    server().clear();
    reported("cancelled in a stall or a storm");
  }
}

TEST_F(Faults, OlderStores) {
  server().set({{"ignore_conditions", true}});
  const auto storage = store(quick());
  put(*storage, "x", "first");
  expect_error(ErrorCode::kAlreadyExists, {"x"}, [&] { put(*storage, "x", "second"); });
  EXPECT_EQ(get(*storage, "x"), "first");
  reset();

  server().set({{"ignore_ranges", true}});
  const std::string content = random_text(300'000, 1);
  put(*storage, "y", content);
  std::string out(100, '-');
  expect_error(ErrorCode::kCorrupt, {"ignores the Range header"},
               [&] { storage->open("y", {})->read(1000, std::as_writable_bytes(std::span(out))); });
  put(*storage, "tiny", "0123456789");
  storage->open("tiny", {})->read(3, std::as_writable_bytes(std::span(out).first(3)));
  EXPECT_EQ(out.substr(0, 3), "345");
  reset();

  server().set({{"refuse_checksum_headers", true}});
  expect_error(ErrorCode::kIo, {"501 NotImplemented", "checksum=none"}, [&] { put(*storage, "z", "content"); });
  StoreSettings without = quick();
  without.send_checksums = false;
  put(*store(without), "z", "content");
  reported("store without conditions, ranges, checksum headers", 3);
}

}  // namespace
}  // namespace torchsnapshot
