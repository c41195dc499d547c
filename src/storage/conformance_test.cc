#include "storage/conformance.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "storage/testing.h"

namespace torchsnapshot {
namespace {

using Strings = std::vector<std::string>;

TEST_P(StorageConformance, WhatIsWrittenIsReadBack) {
  put(*storage_, "data/one", "hello");
  EXPECT_EQ(get(*storage_, "data/one"), "hello");
  EXPECT_EQ(get(*open_place_(), "data/one"), "hello");  // by another handle too
}

TEST_P(StorageConformance, EmptyPlace) {
  EXPECT_EQ(storage_->list(""), Strings{});
  EXPECT_EQ(storage_->list("data/"), Strings{});
  storage_->remove(Strings{"data/none", "none"});
  storage_->sync();
  EXPECT_NE(storage_->url().find("://"), std::string::npos);
}

TEST_P(StorageConformance, BlocksInAnyOrder) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    std::mt19937_64 random(seed);
    const std::string content = random_text(random() % 5000, seed);
    std::vector<std::size_t> cuts{0, content.size()};
    for (std::size_t i = random() % 8; i > 0; --i) cuts.push_back(random() % (content.size() + 1));
    std::sort(cuts.begin(), cuts.end());
    std::vector<std::size_t> order(cuts.size() - 1);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);

    const std::string location = "blocks/" + std::to_string(seed);
    const auto writer = storage_->create(location, content.size(), {});
    for (const std::size_t i : order) {  // some blocks are empty
      writer->write(cuts[i], bytes_of(content).subspan(cuts[i], cuts[i + 1] - cuts[i]));
    }
    writer->finish();
    EXPECT_EQ(get(*storage_, location), content) << "seed " << seed;

    const auto reader = storage_->open(location, {});
    for (int i = 0; i < 10; ++i) {
      const std::size_t begin = random() % (content.size() + 1);
      std::string part(random() % (content.size() - begin + 1), '\0');
      reader->read(begin, std::as_writable_bytes(std::span(part)));
      EXPECT_EQ(part, content.substr(begin, part.size())) << "seed " << seed;
    }
  }
}

TEST_P(StorageConformance, BlocksFromSeveralThreads) {
  constexpr std::size_t kBlock = 70'001;  // no multiple of a page
  constexpr std::size_t kBlocks = 24;
  const std::string content = random_text(kBlock * kBlocks, 1);
  const auto writer = storage_->create("big", content.size(), {});
  std::atomic<std::size_t> next = 0;
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (std::size_t i = next++; i < kBlocks; i = next++) {
        writer->write(i * kBlock, bytes_of(content).subspan(i * kBlock, kBlock));
      }
    });
  }
  threads.clear();
  writer->finish();

  const auto reader = storage_->open("big", {});
  next = 0;
  std::string read_back(content.size(), '\0');
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (std::size_t i = next++; i < kBlocks; i = next++) {
        reader->read(i * kBlock, std::as_writable_bytes(std::span(read_back)).subspan(i * kBlock, kBlock));
      }
    });
  }
  threads.clear();
  EXPECT_TRUE(read_back == content);
}

TEST_P(StorageConformance, ListingsTellSizesAndTimes) {
  EXPECT_TRUE(storage_->list_objects("").empty());
  put(*storage_, "data/two", "22");
  put(*storage_, "data/one", "");
  storage_->publish("top", "three");
  const auto objects = storage_->list_objects("");
  ASSERT_EQ(objects.size(), 3U);
  const std::vector<std::pair<std::string, std::uint64_t>> expected{{"data/one", 0}, {"data/two", 2}, {"top", 5}};
  // Another machine's clock may tell the time of a storage.
  const auto now = std::chrono::system_clock::now();
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(objects[i].location, expected[i].first);
    EXPECT_EQ(objects[i].size.value_or(expected[i].second), expected[i].second);
    EXPECT_LT(std::chrono::abs(now - objects[i].modified.value_or(now)), std::chrono::hours(1));
  }
  const auto some = storage_->list_objects("data/t");
  ASSERT_EQ(some.size(), 1U);
  EXPECT_EQ(some[0].location, "data/two");
}

TEST_P(StorageConformance, RemovalsCanBeMadeDurable) {
  put(*storage_, "data/a/one", "1");
  storage_->sync();
  storage_->remove(Strings{"data/a/one"});
  storage_->sync();
  EXPECT_EQ(storage_->list(""), Strings{});
}

TEST_P(StorageConformance, ObjectsOfZeroBytes) {
  storage_->create("empty", 0, {})->finish();
  EXPECT_EQ(get(*storage_, "empty"), "");
  EXPECT_EQ(storage_->read_all("empty", 0, {}), "");
  storage_->open("empty", {})->read(0, {});
  EXPECT_EQ(storage_->list(""), Strings{"empty"});
  storage_->publish("published", "");
  EXPECT_EQ(get(*storage_, "published"), "");
}

TEST_P(StorageConformance, BlocksOutsideTheObjectAreRefused) {
  const auto writer = storage_->create("a/b", 10, {});
  const std::string data(11, 'x');
  const auto refused = [&](std::uint64_t offset, std::size_t count) {
    expect_error(ErrorCode::kInvalidArgument, {storage_->url(), "a/b", std::to_string(count) + " bytes"},
                 [&] { writer->write(offset, bytes_of(data).first(count)); });
  };
  refused(0, 11);
  refused(5, 6);
  refused(10, 1);
  refused(11, 0);
  refused(~0ULL, 1);
  refused(~0ULL - 3, 10);
  writer->write(0, bytes_of(data).first(10));
  writer->finish();
  EXPECT_EQ(get(*storage_, "a/b"), data.substr(0, 10));
}

TEST_P(StorageConformance, AnObjectWithGapsIsNotFinished) {
  {
    const auto writer = storage_->create("gap", 10, {});
    writer->write(0, bytes_of("12345"));
    expect_error(ErrorCode::kInvalidArgument, {storage_->url(), "gap", "5 of 10"}, [&] { writer->finish(); });
  }
  expect_error(ErrorCode::kNotFound, {"gap"}, [&] { get(*storage_, "gap"); });
}

TEST_P(StorageConformance, FinishIsForOnce) {
  const auto writer = storage_->create("once", 0, {});
  writer->finish();
  expect_error(ErrorCode::kInvalidArgument, {storage_->url(), "once"}, [&] { writer->finish(); });
  EXPECT_EQ(get(*storage_, "once"), "");
}

TEST_P(StorageConformance, ReadsPastTheEndAreCorruption) {
  put(*storage_, "dir/short", "0123456789");
  const auto reader = storage_->open("dir/short", {});
  std::string out(11, '\0');
  const auto short_read = [&](std::uint64_t offset, std::size_t count) {
    expect_error(ErrorCode::kCorrupt, {storage_->url(), "dir/short", "only 10 bytes"},
                 [&] { reader->read(offset, std::as_writable_bytes(std::span(out)).first(count)); });
  };
  short_read(0, 11);
  short_read(9, 2);
  short_read(10, 1);
  short_read(1000, 1);
  short_read(~0ULL, 2);
  reader->read(10, {});
  reader->read(9, std::as_writable_bytes(std::span(out)).first(1));
  EXPECT_EQ(out[0], '9');
}

TEST_P(StorageConformance, ViewsShowWhatIsRead) {
  const std::string content = random_text(1 << 20, 3);
  put(*storage_, "viewed", content);
  std::mt19937 random(5);
  for (int i = 0; i < 50; ++i) {
    const std::size_t begin = random() % content.size();
    const std::size_t size = random() % (content.size() - begin + 1);
    const auto view = storage_->open("viewed", {})->view(begin, size);
    if (view) {
      EXPECT_TRUE(view->view() == std::string_view(content).substr(begin, size)) << begin << ' ' << size;
    }
  }
  const auto reader = storage_->open("viewed", {});
  try {
    EXPECT_FALSE(reader->view(1, content.size()).has_value());
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
  }
}

TEST_P(StorageConformance, BytesPassTheirPlacerOnceAndInOrder) {
  const std::string content = random_text(300'000, 4);
  put(*storage_, "placed", content);
  const auto reader = storage_->open("placed", {});
  std::mt19937 random(6);
  std::string out(content.size(), '-');
  for (int i = 0; i < 20; ++i) {
    const std::size_t begin = random() % content.size();
    const std::size_t size = random() % (content.size() - begin + 1);
    const auto bytes = std::as_writable_bytes(std::span(out)).first(size);
    std::string seen;
    reader->read_placing(begin, bytes,
                         [&](std::uint64_t offset, std::span<std::byte> dst, std::span<const std::byte> src) {
                           ASSERT_EQ(dst.size(), src.size());
                           EXPECT_EQ(offset, begin + seen.size());
                           EXPECT_EQ(dst.data(), bytes.data() + seen.size());
                           seen.append(reinterpret_cast<const char*>(src.data()), src.size());
                           std::memmove(dst.data(), src.data(), src.size());
                         });
    EXPECT_TRUE(seen == content.substr(begin, size)) << begin << ' ' << size;
    EXPECT_TRUE(out.compare(0, size, content, begin, size) == 0) << begin << ' ' << size;
  }
  // What it throws ends the read, and nothing else.
  expect_error(ErrorCode::kCorrupt, {"found by the placer"}, [&] {
    reader->read_placing(0, std::as_writable_bytes(std::span(out)),
                         [](std::uint64_t, auto, auto) { throw Error(ErrorCode::kCorrupt, "found by the placer"); });
  });
  reader->read(0, std::as_writable_bytes(std::span(out)));
  EXPECT_TRUE(out == content);
}

TEST_P(StorageConformance, MissingObjects) {
  put(*storage_, "there/a", "x");
  for (const char* location : {"none", "none/a", "there/b", "there"}) {
    const auto missing = [&](auto action) { expect_error(ErrorCode::kNotFound, {storage_->url(), location}, action); };
    missing([&] { storage_->open(location, {}); });
    missing([&] { storage_->read_all(location, 100, {}); });
    missing([&] { storage_->sizes(Strings{"there/a", location}, {}); });
  }
}

TEST_P(StorageConformance, ReadAllHasALimit) {
  put(*storage_, "text", "12345");
  EXPECT_EQ(storage_->read_all("text", 5, {}), "12345");
  expect_error(ErrorCode::kCorrupt, {storage_->url(), "text", "5 bytes"}, [&] { storage_->read_all("text", 4, {}); });
  expect_error(ErrorCode::kCorrupt, {"text"}, [&] { storage_->read_all("text", 0, {}); });
}

TEST_P(StorageConformance, ATakenNameIsRefused) {
  put(*storage_, "a/b", "first");
  expect_error(ErrorCode::kAlreadyExists, {storage_->url(), "a/b"}, [&] { storage_->create("a/b", 1, {}); });
  storage_->publish("c", "first");
  expect_error(ErrorCode::kAlreadyExists, {storage_->url(), "c"}, [&] { storage_->create("c", 1, {}); });
  EXPECT_EQ(get(*storage_, "a/b"), "first");
  // Also one that is being written; which stays unharmed.
  const auto writer = storage_->create("d", 1, {});
  expect_error(ErrorCode::kAlreadyExists, {storage_->url(), "d"}, [&] { storage_->create("d", 2, {}); });
  writer->write(0, bytes_of("x"));
  writer->finish();
  EXPECT_EQ(get(*storage_, "d"), "x");
}

TEST_P(StorageConformance, OneOfManyCreatorsWins) {
  for (int round = 0; round < 20; ++round) {
    const std::string location = "race/" + std::to_string(round) + "/x";
    std::atomic<int> winners = 0;
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        try {
          put(*storage_, location, "content");
          ++winners;
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), ErrorCode::kAlreadyExists) << error.what();
        }
      });
    }
    threads.clear();
    EXPECT_EQ(winners, 1);
    EXPECT_EQ(get(*storage_, location), "content");
  }
}

TEST_P(StorageConformance, SizesInTheOrderAsked) {
  put(*storage_, "a", "1");
  put(*storage_, "b/c", "22");
  storage_->create("z", 0, {})->finish();
  const auto sizes = storage_->sizes(Strings{"z", "b/c", "a", "b/c"}, {});
  const std::vector<std::uint64_t> expected{0, 2, 1, 2};
  ASSERT_EQ(sizes.size(), expected.size());
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i]) {  // a backend need not know
      EXPECT_EQ(*sizes[i], expected[i]);
    }
  }
  EXPECT_TRUE(storage_->sizes({}, {}).empty());
}

TEST_P(StorageConformance, ListIsSortedAndByPrefix) {
  // In the order of bytes: ' ' and '-' come before '/', letters after it.
  const Strings all{".hidden", "a b/x", "a-b", "a/1", "a/10", "a/2/deep/er", "a0", "b", "z/\xc3\xa9"};
  for (auto location = all.rbegin(); location != all.rend(); ++location) put(*storage_, *location, "x");
  EXPECT_EQ(storage_->list(""), all);
  EXPECT_EQ(storage_->list("a"), (Strings{"a b/x", "a-b", "a/1", "a/10", "a/2/deep/er", "a0"}));
  EXPECT_EQ(storage_->list("a/"), (Strings{"a/1", "a/10", "a/2/deep/er"}));
  EXPECT_EQ(storage_->list("a/1"), (Strings{"a/1", "a/10"}));
  EXPECT_EQ(storage_->list("a/2/de"), (Strings{"a/2/deep/er"}));
  EXPECT_EQ(storage_->list("b"), (Strings{"b"}));
  for (const char* prefix : {"c", "b/", "a/1/", "a/2/deep/er/x", "/", "/a", "../", "a/../", "./", "a//", "."}) {
    const Strings expected = std::string(prefix) == "." ? Strings{".hidden"} : Strings{};
    EXPECT_EQ(storage_->list(prefix), expected) << prefix;
  }
}

TEST_P(StorageConformance, RandomListsMatchAModel) {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    const auto storage = GetParam().make_place();
    const auto place = storage();
    std::mt19937 random(seed);
    Strings expected;
    for (int i = 0; i < 30; ++i) {
      std::string location;
      for (auto depth = random() % 3; depth > 0; --depth) location += std::string(1, "abA"[random() % 3]) + "/";
      location += "f" + std::to_string(i) + std::string(random() % 3, '.');
      put(*place, location, "x");
      expected.push_back(location);
    }
    std::shuffle(expected.begin(), expected.end(), random);
    const Strings removed(expected.begin() + 20, expected.end());
    expected.resize(20);
    place->remove(removed);
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(place->list(""), expected) << "seed " << seed;
    for (const char* prefix : {"a", "a/", "a/b", "A/f1", "f"}) {
      Strings matching;
      for (const std::string& location : expected) {
        if (location.starts_with(prefix)) matching.push_back(location);
      }
      EXPECT_EQ(place->list(prefix), matching) << prefix << " seed " << seed;
    }
  }
}

TEST_P(StorageConformance, RemovedObjectsAreGone) {
  put(*storage_, "a/b/one", "1");
  put(*storage_, "a/b/two", "2");
  put(*storage_, "a/three", "3");
  storage_->remove(Strings{"a/b/two", "none", "a/b/one", "a/none", "a/b/one"});
  EXPECT_EQ(storage_->list(""), Strings{"a/three"});
  expect_error(ErrorCode::kNotFound, {"a/b/one"}, [&] { get(*storage_, "a/b/one"); });
  put(*storage_, "a/b", "a name that was a folder is free again");
  put(*storage_, "a/c/one", "again");
  EXPECT_EQ(storage_->list(""), (Strings{"a/b", "a/c/one", "a/three"}));
  storage_->remove({});
  storage_->remove(Strings{"a/c"});  // no object has that name
  EXPECT_EQ(get(*storage_, "a/c/one"), "again");
}

TEST_P(StorageConformance, AReaderKeepsWhatItOpened) {
  put(*storage_, "x/y", "content");
  const auto reader = storage_->open("x/y", {});
  storage_->remove(Strings{"x/y"});
  put(*storage_, "x/y", "another");
  std::string out(7, '\0');
  reader->read(0, std::as_writable_bytes(std::span(out)));
  EXPECT_EQ(out, "content");
}

TEST_P(StorageConformance, PublishCreatesAndReplaces) {
  storage_->publish("dir/meta", "first");
  EXPECT_EQ(get(*storage_, "dir/meta"), "first");
  storage_->publish("dir/meta", "the second is longer");
  EXPECT_EQ(get(*open_place_(), "dir/meta"), "the second is longer");
  storage_->publish("dir/meta", "3");
  EXPECT_EQ(get(*storage_, "dir/meta"), "3");
  storage_->publish("meta", "at the top");
  EXPECT_EQ(storage_->list(""), (Strings{"dir/meta", "meta"}));  // and nothing temporary
}

TEST_P(StorageConformance, ReadersSeeTheOldContentOrTheNew) {
  const auto content_of = [](std::size_t i) { return std::string(1000 + 500 * i, static_cast<char>('a' + i)); };
  storage_->publish("meta", content_of(0));
  std::atomic<bool> done = false;
  std::vector<std::jthread> readers;
  for (int t = 0; t < 3; ++t) {
    readers.emplace_back([&] {
      do {
        const std::string seen = get(*storage_, "meta");
        EXPECT_TRUE(seen == content_of(static_cast<std::size_t>(seen[0] - 'a'))) << seen.size() << " of " << seen[0];
      } while (!done);
    });
  }
  for (std::size_t i = 1; i < 60; ++i) storage_->publish("meta", content_of(i % 7));
  done = true;
}

TEST_P(StorageConformance, PublishersDoNotDisturbEachOther) {
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) storage_->publish("dir/meta", std::string(100, static_cast<char>('0' + t)));
    });
  }
  threads.clear();
  const std::string content = get(*storage_, "dir/meta");
  EXPECT_EQ(content, std::string(100, content[0]));
  EXPECT_EQ(storage_->list(""), Strings{"dir/meta"});
}

TEST_P(StorageConformance, UnusualNames) {
  const Strings names{"\xe4\xbd\xa0\xe5\xa5\xbd/\xf0\x9f\x94\xa5.bin",
                      std::string(200, 'n'),
                      std::string(200, 'd') + "/" + std::string(200, 'f'),
                      "with space/and\ttab/and\nnewline",
                      "0/percent%2Fencoded%25/%00",
                      "-rf/*?[]{}$'\"\\",
                      "..hidden/...",
                      "colon:c/a://b"};
  for (const std::string& name : names) {
    put(*storage_, name, name);
    EXPECT_EQ(get(*storage_, name), name);
  }
  storage_->publish(std::string(200, 'p'), "published");
  EXPECT_EQ(storage_->list("").size(), names.size() + 2 - 1);
}

TEST_P(StorageConformance, SpellingsOfOneLocation) {
  put(*storage_, "a/./b//c/../d", "x");
  EXPECT_EQ(storage_->list(""), Strings{"a/b/d"});
  EXPECT_EQ(get(*storage_, "a/b/d"), "x");
  EXPECT_EQ(get(*storage_, "./none/../a/b/d"), "x");
  storage_->remove(Strings{"a//b/d"});
  EXPECT_EQ(storage_->list(""), Strings{});
}

TEST_P(StorageConformance, LocationsThatLeaveTheRootAreRefused) {
  using namespace std::string_literals;
  for (const std::string& location :
       {""s, "/"s, "/etc/passwd"s, ".."s, "../x"s, "a/../../x"s, "a/b/../../../x"s, "a\0b"s, "."s, "a/.."s, "./"s}) {
    const auto refused = [](auto action) { expect_error(ErrorCode::kCorrupt, {}, action); };
    refused([&] { storage_->create(location, 1, {}); });
    refused([&] { storage_->open(location, {}); });
    refused([&] { storage_->read_all(location, 100, {}); });
    refused([&] { storage_->sizes(Strings{location}, {}); });
    refused([&] { storage_->publish(location, "x"); });
    refused([&] { storage_->remove(Strings{"fine", location}); });
  }
  EXPECT_EQ(storage_->list(""), Strings{});
}

TEST_P(StorageConformance, AnAbandonedObjectIsNotThere) {
  storage_->create("abandoned/a", 5, {});
  {
    const auto writer = storage_->create("abandoned/b", 5, {});
    writer->write(0, bytes_of("12345"));  // all of it, but not finished
  }
  EXPECT_EQ(storage_->list(""), Strings{});
  expect_error(ErrorCode::kNotFound, {"abandoned/b"}, [&] { get(*storage_, "abandoned/b"); });
  put(*storage_, "abandoned/a", "now");
  EXPECT_EQ(get(*storage_, "abandoned/a"), "now");
}

TEST_P(StorageConformance, UnfinishedObjectsThatAreKeptApartCanBeRemoved) {
  const std::string content((11 << 20) + 1, 'x');  // more parts than one on any backend that has parts
  put(*storage_, "data/whole", "1");
  auto writer = storage_->create("data/big", content.size(), {});
  writer->write(0, bytes_of(content));
  const auto unfinished = open_place_()->list_unfinished("data/");
  EXPECT_TRUE(storage_->list_unfinished("other/").empty());
  if (unfinished.empty()) {  // what is unfinished is an object among others, or the backend forgets it by itself
    writer->finish();
    EXPECT_TRUE(get(*storage_, "data/big") == content);
    return;
  }
  ASSERT_EQ(unfinished.size(), 1U);
  EXPECT_EQ(unfinished[0].location, "data/big");
  EXPECT_FALSE(unfinished[0].id.empty());
  EXPECT_LE(unfinished[0].bytes, content.size());
  EXPECT_GT(unfinished[0].bytes, 0U);
  ASSERT_TRUE(unfinished[0].modified.has_value());
  EXPECT_LT(std::chrono::abs(std::chrono::system_clock::now() - *unfinished[0].modified), std::chrono::hours(1));
  EXPECT_EQ(storage_->list("data/"), Strings{"data/whole"});
  open_place_()->remove_unfinished(unfinished);
  EXPECT_TRUE(storage_->list_unfinished("").empty());
  EXPECT_THROW(writer->finish(), Error);
  writer.reset();
  put(*storage_, "data/big", content);
  storage_->remove_unfinished(unfinished);  // the same name, but not that attempt
  EXPECT_EQ(storage_->list("data/"), (Strings{"data/big", "data/whole"}));
}

TEST_P(StorageConformance, AnAbandonedWriterSparesAnotherObjectOfItsName) {
  auto abandoned = storage_->create("x", 5, {});
  storage_->remove(Strings{"x"});
  put(*storage_, "x", "another");
  abandoned.reset();
  EXPECT_EQ(get(*storage_, "x"), "another");
}

TEST_P(StorageConformance, WritersAndReadersMayOutliveTheStorage) {
  auto writer = storage_->create("a/b", 1, {});
  storage_.reset();
  writer->write(0, bytes_of("x"));
  writer->finish();
  writer.reset();
  const auto reader = open_place_()->open("a/b", {});
  std::string out(1, '\0');
  reader->read(0, std::as_writable_bytes(std::span(out)));
  EXPECT_EQ(out, "x");
}

TEST_P(StorageConformance, AStopCancels) {
  put(*storage_, "there", "12345");
  std::stop_source stop;
  const auto cancelled = [](auto action) { expect_error(ErrorCode::kCancelled, {"cancelled"}, action); };
  {
    const auto writer = storage_->create("new/a", 2, stop.get_token());
    const auto complete = storage_->create("new/b", 1, stop.get_token());
    const auto reader = storage_->open("there", stop.get_token());
    writer->write(0, bytes_of("1"));
    complete->write(0, bytes_of("1"));
    stop.request_stop();
    cancelled([&] { writer->write(1, bytes_of("2")); });
    cancelled([&] { complete->finish(); });
    std::byte out{};
    cancelled([&] { reader->read(0, std::span(&out, 1)); });
  }
  cancelled([&] { storage_->create("new/c", 1, stop.get_token()); });
  cancelled([&] { storage_->open("there", stop.get_token()); });
  cancelled([&] { storage_->read_all("there", 100, stop.get_token()); });
  cancelled([&] { storage_->sizes(Strings{"there"}, stop.get_token()); });
  EXPECT_EQ(storage_->list(""), Strings{"there"});
}

// Threads with folders that come and go under each other: each finds its own objects as it left them.
TEST_P(StorageConformance, ConcurrentUse) {
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<std::uint32_t>(t));
      for (int i = 0; i < 100; ++i) {
        // Folders are shared: one thread's remove() meets another's create().
        const std::string folder = "shared" + std::to_string(random() % 2) + "/" + std::to_string(random() % 2);
        const std::string location = folder + "/" + std::to_string(t);
        const std::string content = random_text(random() % 300, random());
        put(*storage_, location, content);
        EXPECT_EQ(get(*storage_, location), content);
        const Strings listed = storage_->list(folder + "/");
        EXPECT_TRUE(std::find(listed.begin(), listed.end(), location) != listed.end());
        if (i % 10 == 0) storage_->sync();
        storage_->remove(Strings{location});
      }
    });
  }
  threads.clear();
  EXPECT_EQ(storage_->list(""), Strings{});
}

}  // namespace
}  // namespace torchsnapshot
