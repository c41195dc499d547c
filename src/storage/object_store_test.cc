// The object stores against the test server: the conformance suite, and what is special about them.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <random>
#include <thread>

#include "storage/conformance.h"
#include "storage/testing.h"
#include "storage/testing_store.h"

namespace torchsnapshot {
namespace {

ConformanceBackend backend(const std::string& name, StoreKind kind) {
  return {name, [name, kind] {
            static std::atomic<int> places = 0;
            const std::string prefix = "conformance/" + name + std::to_string(++places);
            return [kind, prefix] { return store(settings_for(kind, prefix)); };
          }};
}

INSTANTIATE_TEST_SUITE_P(ObjectStore, StorageConformance,
                         testing::Values(backend("S3", StoreKind::kS3), backend("GcsXml", StoreKind::kGoogleXml),
                                         backend("GcsJson", StoreKind::kGoogleJson)),
                         backend_name);

// An object of several parts, in blocks of any size and order: each part goes out once, and the whole is there at the
// end.
class Parts : public testing::TestWithParam<StoreKind> {};
INSTANTIATE_TEST_SUITE_P(Kinds, Parts, testing::Values(StoreKind::kS3, StoreKind::kGoogleXml, StoreKind::kGoogleJson));

TEST_P(Parts, BlocksOfAnyShapeAreAssembled) {
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    std::mt19937_64 random(seed);
    const std::string content = random_text((11 << 20) + random() % (5 << 20), seed);
    std::vector<std::size_t> cuts{0, content.size()};
    for (int i = 0; i < 6; ++i) cuts.push_back(random() % content.size());
    if (seed % 2 == 0) cuts.push_back(5 << 20);  // a block that is a whole part, or none
    if (seed % 2 == 0) cuts.push_back(10 << 20);
    std::sort(cuts.begin(), cuts.end());
    std::vector<std::size_t> order(cuts.size() - 1);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    const auto storage = store(settings_for(GetParam(), "parts"));
    const std::string location = std::to_string(seed);
    storage->remove(std::vector<std::string>{location});
    server().clear();
    const auto writer = storage->create(location, content.size(), {});
    std::atomic<std::size_t> next = 0;
    std::vector<std::jthread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&] {
        for (std::size_t i = next++; i < order.size(); i = next++) {
          const std::size_t begin = cuts[order[i]];
          writer->write(begin, bytes_of(content).subspan(begin, cuts[order[i] + 1] - begin));
        }
      });
    }
    threads.clear();
    expect_error(ErrorCode::kNotFound, {location}, [&] { get(*storage, location); });  // not before finish()
    writer->finish();
    EXPECT_TRUE(get(*storage, location) == content) << "seed " << seed;
    EXPECT_EQ(server().count("UploadPart"), static_cast<int>((content.size() - 1) / (5 << 20)) + 1);
    EXPECT_EQ(server().count("PutObject"), 0);
  }
}

TEST_P(Parts, AnAbandonedUploadIsAborted) {
  const auto storage = store(settings_for(GetParam(), "abandoned"));
  server().clear();
  {
    const auto writer = storage->create("x", 12 << 20, {});
    const std::string part(5 << 20, 'x');
    writer->write(0, bytes_of(part));
  }
  EXPECT_EQ(storage->list(""), std::vector<std::string>{});
  if (GetParam() != StoreKind::kGoogleJson) {
    EXPECT_EQ(server().count("AbortMultipartUpload"), 1);
  }
}

TEST_P(Parts, ReadsOfAnyRange) {
  const auto storage = store(settings_for(GetParam(), "ranges"));
  storage->remove(std::vector<std::string>{"x"});
  const std::string content = random_text(1'000'000, 7);
  put(*storage, "x", content);
  const auto reader = storage->open("x", {});
  std::mt19937 random(1);
  for (int i = 0; i < 60; ++i) {
    const std::size_t begin = random() % content.size() / (i % 3 == 0 ? 10 : 1);
    std::string out(random() % (content.size() - begin + 1), '-');
    reader->read(begin, std::as_writable_bytes(std::span(out)));
    EXPECT_TRUE(out == content.substr(begin, out.size())) << begin;
  }
}

TEST(ObjectStore, AReaderNeverMixesTwoVersions) {
  for (const StoreKind kind : {StoreKind::kS3, StoreKind::kGoogleXml}) {
    const auto storage = store(settings_for(kind, "versions"));
    storage->publish("x", std::string(300'000, 'a'));
    const auto reader = storage->open("x", {});
    storage->publish("x", std::string(300'000, 'b'));
    std::string out(200'000, '-');
    expect_error(ErrorCode::kCorrupt, {"versions/x", "replaced"},
                 [&] { reader->read(100'000, std::as_writable_bytes(std::span(out))); });
  }
}

TEST(ObjectStore, ManyObjectsAreListedPageByPage) {
  const auto storage = store(settings_for(StoreKind::kS3, "pages"));
  std::vector<std::string> expected;
  std::vector<std::jthread> threads;
  for (int i = 0; i < 1203; ++i) expected.push_back("f/" + std::to_string(10'000 + i));
  std::atomic<std::size_t> next = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (std::size_t i = next++; i < expected.size(); i = next++) storage->publish(expected[i], "");
    });
  }
  threads.clear();
  server().clear();
  EXPECT_EQ(storage->list(""), expected);
  EXPECT_EQ(server().count("ListObjects"), 2);
  storage->remove(expected);
  EXPECT_TRUE(storage->list("").empty());
}

TEST(ObjectStore, AsFewRequestsAsCanBe) {
  const auto storage = store(settings_for(StoreKind::kS3, "requests"));
  server().clear();
  put(*storage, "small", "content");
  EXPECT_EQ(server().counts()["requests"],
            (nlohmann::json{{"HeadObject", 1}, {"PutObject", 1}, {"error NoSuchKey", 1}}));
  server().clear();
  std::string out(7, '-');
  storage->open("small", {})->read(0, std::as_writable_bytes(std::span(out)));
  EXPECT_EQ(out, "content");
  EXPECT_EQ(server().counts()["requests"], (nlohmann::json{{"GetObject", 1}}));
}

TEST(ObjectStore, SizesOfManyComeFromAListing) {
  StoreSettings settings = settings_for(StoreKind::kS3, "sizes");
  settings.concurrency = 4;
  const auto storage = store(settings);
  std::vector<std::string> some;
  for (std::size_t i = 0; i < 12; ++i) {
    put(*storage, some.emplace_back("data/take/" + std::to_string(i)), std::string(i, 'x'));
  }
  const auto expect_sizes = [&] {
    const auto sizes = storage->sizes(some, {});
    for (std::size_t i = 0; i < some.size(); ++i) EXPECT_EQ(sizes[i], i);
  };
  server().clear();
  expect_sizes();
  EXPECT_EQ(server().counts()["requests"], (nlohmann::json{{"ListObjects", 1}}));
  some.emplace_back("data/take/missing");
  expect_error(ErrorCode::kNotFound, {"data/take/missing", "no such object"}, [&] { storage->sizes(some, {}); });
  some.pop_back();
  EXPECT_TRUE(storage->take_notices().empty());

  // Credentials that may not list read all the same.
  server().set({{"refuse_lists", true}});
  server().clear();
  expect_sizes();
  expect_sizes();
  EXPECT_EQ(server().count("HeadObject"), 24);
  server().set({{"refuse_lists", false}});
  const auto notices = storage->take_notices();
  ASSERT_EQ(notices.size(), 1U);
  EXPECT_NE(notices[0].find("ListBucket"), std::string::npos) << notices[0];

  // A folder with far more in it than was asked for is not listed to its end.
  std::vector<std::string> others;
  for (int i = 0; i < 1100; ++i) others.push_back("data/a/" + std::to_string(i));
  std::vector<std::jthread> threads;
  for (std::size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t i = t; i < others.size(); i += 4) storage->publish(others[i], "");
    });
  }
  threads.clear();
  put(*storage, "data/b", "1");
  some.emplace_back("data/b");
  server().clear();
  const auto sizes = storage->sizes(some, {});
  EXPECT_EQ(sizes.back(), 1U);
  EXPECT_EQ(server().count("ListObjects"), 1);
  EXPECT_EQ(server().count("HeadObject"), 13);
}

TEST(ObjectStore, FolderMarkersOfConsolesAreNoObjects) {
  const StoreSettings settings = settings_for(StoreKind::kS3, "markers");
  api_of(settings)->put("markers/dir/", {}, false, {});
  const auto storage = store(settings);
  put(*storage, "dir/x", "1");
  EXPECT_EQ(storage->list(""), std::vector<std::string>{"dir/x"});
}

TEST(ObjectStore, SettingsOfObjectsReachTheStore) {
  StoreSettings settings = settings_for(StoreKind::kS3, "headers");
  settings.storage_class = "STANDARD_IA";
  settings.server_side_encryption = "aws:kms";
  settings.sse_kms_key_id = "key-1";
  settings.requester_pays = true;
  settings.sign_payload = true;
  const auto storage = store(settings);
  put(*storage, "x", "content");
  put(*storage, "big", std::string(6 << 20, 'x'));
  const auto headers = server().state("last_headers");
  for (const char* operation : {"PutObject", "CreateMultipartUpload"}) {
    EXPECT_EQ(headers[operation]["x-amz-storage-class"], "STANDARD_IA");
    EXPECT_EQ(headers[operation]["x-amz-server-side-encryption"], "aws:kms");
    EXPECT_EQ(headers[operation]["x-amz-server-side-encryption-aws-kms-key-id"], "key-1");
    EXPECT_EQ(headers[operation]["x-amz-request-payer"], "requester");
  }
  EXPECT_EQ(headers["PutObject"]["x-amz-content-sha256"],
            "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73");
  EXPECT_EQ(headers["PutObject"]["x-amz-checksum-crc32c"], "Ya91Mw==");
  EXPECT_EQ(headers["PutObject"]["if-none-match"], "*");
  EXPECT_EQ(headers["CompleteMultipartUpload"]["if-none-match"], "*");
  EXPECT_FALSE(headers["PutObject"].contains("expect"));
}

}  // namespace
}  // namespace torchsnapshot
