#include <gtest/gtest.h>

#include <random>

#include "storage/location.h"
#include "storage/testing.h"

namespace torchsnapshot {
namespace {

TEST(ParseStorageUrl, PathsAndSchemes) {
  EXPECT_EQ(parse_storage_url("path"), (StorageUrl{"fs", "path"}));
  EXPECT_EQ(parse_storage_url("/a/b"), (StorageUrl{"fs", "/a/b"}));
  EXPECT_EQ(parse_storage_url("./a b"), (StorageUrl{"fs", "./a b"}));
  EXPECT_EQ(parse_storage_url("fs:///a/b"), (StorageUrl{"fs", "/a/b"}));
  EXPECT_EQ(parse_storage_url("fs://a/b"), (StorageUrl{"fs", "a/b"}));
  EXPECT_EQ(parse_storage_url("FS://A"), (StorageUrl{"fs", "A"}));
  EXPECT_EQ(parse_storage_url("memory://name"), (StorageUrl{"memory", "name"}));
  EXPECT_EQ(parse_storage_url("s3://bucket/a/b"), (StorageUrl{"s3", "bucket/a/b"}));
  EXPECT_EQ(parse_storage_url("git+ssh://x://y"), (StorageUrl{"git+ssh", "x://y"}));
  EXPECT_EQ(parse_storage_url("fs://\xff\xfe"), (StorageUrl{"fs", "\xff\xfe"}));
}

TEST(ParseStorageUrl, WhatIsNoSchemeIsAPath) {
  for (const char* path : {"a/b://c", "://x", "3d://x", "a b://x", "\xc3\xa9://x", "s3:/x", "s3:", "a:b", "-a://x"}) {
    EXPECT_EQ(parse_storage_url(path), (StorageUrl{"fs", path}));
  }
}

TEST(ParseStorageUrl, Refused) {
  expect_error(ErrorCode::kInvalidArgument, {"empty"}, [] { parse_storage_url(""); });
  expect_error(ErrorCode::kInvalidArgument, {"fs://"}, [] { parse_storage_url("fs://"); });
  expect_error(ErrorCode::kInvalidArgument, {"memory://"}, [] { parse_storage_url("memory://"); });
  expect_error(ErrorCode::kInvalidArgument, {"NUL"}, [] { parse_storage_url(std::string_view("a\0b", 3)); });
}

TEST(OpenStorage, ByScheme) {
  EXPECT_EQ(open_storage("/a//b/")->url(), "fs:///a/b");
  EXPECT_EQ(open_storage("fs:///a/./b")->url(), "fs:///a/b");
  EXPECT_EQ(open_storage("relative")->url(), "fs://" + (std::filesystem::current_path() / "relative").native());
  EXPECT_EQ(open_storage(".")->url(), "fs://" + std::filesystem::current_path().native());
  EXPECT_EQ(open_storage("/")->url(), "fs:///");
  EXPECT_EQ(open_storage("memory://x")->url(), "memory://x");
  for (const char* io : {"auto", "uring", "direct", "buffered"}) {
    EXPECT_EQ(open_storage("/a", {{"io", io}})->io_path(), io == std::string("buffered") ? "page cache" : "");
  }
  EXPECT_EQ(open_storage("s3://bucket/a/b/")->url(), "s3://bucket/a/b");
  EXPECT_EQ(open_storage("S3://bucket")->url(), "s3://bucket");
  EXPECT_EQ(open_storage("gs://bucket/a")->url(), "gs://bucket/a");
}

TEST(OpenStorage, UnknownSchemesNameTheKnownOnes) {
  expect_error(ErrorCode::kUnsupported, {"'hdfs://'", "fs://PATH", "memory://NAME", "s3://BUCKET"},
               [] { open_storage("hdfs://x"); });
  try {
    open_storage("http://user:secret@host/x");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find("secret"), std::string::npos);
  }
}

TEST(OpenStorage, UnknownOptionsAreRefused) {
  expect_error(ErrorCode::kInvalidArgument, {"'region'", "only 'io'"}, [] { open_storage("/a", {{"region", "x"}}); });
  expect_error(ErrorCode::kInvalidArgument, {"'io'", "'fast'", "auto, uring, direct or buffered"}, [] {
    open_storage("/a", {{"io", "fast"}});
  });
  expect_error(ErrorCode::kInvalidArgument, {"'region'", "no options"}, [] {
    open_storage("memory://a", {{"region", "x"}});
  });
  expect_error(ErrorCode::kInvalidArgument, {"empty"}, [] { open_fs_storage(""); });
}

TEST(NormalizeLocation, Spellings) {
  EXPECT_EQ(normalize_location("a"), "a");
  EXPECT_EQ(normalize_location("a/b/c"), "a/b/c");
  EXPECT_EQ(normalize_location("./a//b/./c/"), "a/b/c");
  EXPECT_EQ(normalize_location("a/../b"), "b");
  EXPECT_EQ(normalize_location("a/b/../../c"), "c");
  EXPECT_EQ(normalize_location("..a/.../a.."), "..a/.../a..");
  for (const char* location : {"", "/a", "..", "../a", "a/../..", "a/../../b", "a/..", ".", "./.", "a/b/../.."}) {
    expect_error(ErrorCode::kCorrupt, {}, [&] { normalize_location(location); });
  }
}

// Whatever goes in: it is refused, or comes out below the root in a form that stays the same.
TEST(NormalizeLocation, RandomLocations) {
  std::mt19937 random(3);
  int accepted = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string location(random() % 12, ' ');
    for (char& c : location) c = "./a%"[random() % 4];
    std::string normal;
    try {
      normal = normalize_location(location);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
      continue;
    }
    ++accepted;
    EXPECT_EQ(normalize_location(normal), normal) << location;
    EXPECT_EQ("/root/" + normal, std::filesystem::path("/root/" + location + "/.").lexically_normal().parent_path())
        << location;
  }
  EXPECT_GT(accepted, 500);
}

TEST(ParentFolders, NearestFirst) {
  EXPECT_EQ(parent_folders("a/b/c"), (std::vector<std::string_view>{"a/b", "a"}));
  EXPECT_TRUE(parent_folders("a").empty());
}

}  // namespace
}  // namespace torchsnapshot
