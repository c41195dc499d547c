#include "manifest/manifest_index.h"

#include <gtest/gtest.h>

#include <map>

#include "manifest/rank_view.h"
#include "manifest/test_support.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

const std::string kTake(32, '7');

/// An index in memory that counts what is read of it.
struct Stored {
  std::string bytes;
  std::uint64_t read = 0;

  ManifestIndex open() {
    return {[this](std::uint64_t offset, std::uint64_t size) {
              read += size;
              return bytes.substr(offset, size);
            },
            bytes.size(), kTake};
  }
};

SnapshotMetadata nested(test::RandomMetadata& random, std::size_t entries) {
  SnapshotMetadata metadata;
  metadata.world_size = 3;
  for (std::size_t i = 0; i < entries; ++i) {
    std::string path = std::to_string(random.number(3)) + "/k" + std::to_string(random.number(4));
    for (auto depth = random.number(4); depth > 0; --depth) {
      path += (random.flip() ? "/" : "-") + std::string(1, static_cast<char>('a' + random.number(4)));
    }
    if (Entry* const entry = metadata.manifest.try_emplace(path)) *entry = random.entry();
  }
  return metadata;
}

TEST(ManifestIndex, FindsWhatIsThereAndNothingElse) {
  test::RandomMetadata random(3);
  for (int round = 0; round < 60; ++round) {
    const SnapshotMetadata metadata = nested(random, static_cast<std::size_t>(random.number(2000)));
    Stored stored{write_index(metadata, kTake, {77, 5})};
    const ManifestIndex index = stored.open();
    EXPECT_EQ(index.identity(), (MetadataIdentity{77, 5}));
    EXPECT_EQ(index.world_size(), 3);
    EXPECT_EQ(index.entries(), metadata.manifest.size());
    for (int look = 0; look < 30; ++look) {
      std::string path = "k" + std::to_string(random.number(5));
      for (auto depth = random.number(3); depth > 0; --depth) {
        path += (random.flip() ? "/" : "-") + std::string(1, static_cast<char>('a' + random.number(4)));
      }
      const bool subtree = random.flip();
      std::map<std::string, Entry> expected;
      for (const auto& [full, entry] : metadata.manifest) {
        const std::string_view inner = split_rank(full).second;
        if (inner == path || (subtree && inner.starts_with(path + "/"))) expected.emplace(full, entry);
      }
      Manifest found;
      index.select(path, subtree, found);
      std::map<std::string, Entry> got(found.begin(), found.end());
      EXPECT_EQ(got, expected) << path;
    }
  }
}

TEST(ManifestIndex, ReadsLittleOfALargeOne) {
  SnapshotMetadata metadata;
  for (int i = 0; i < 200'000; ++i) {
    metadata.manifest.add("0/m/" + std::to_string(i), PrimitiveEntry{PrimitiveType::kInt, "1", std::nullopt, false});
  }
  Stored stored{write_index(metadata, kTake, {})};
  const ManifestIndex index = stored.open();
  Manifest found;
  index.select("m/123456", true, found);
  EXPECT_EQ(found.size(), 1U);
  EXPECT_LT(stored.read, stored.bytes.size() / 50);
}

TEST(ManifestIndex, DamageIsAnErrorOrHarmless) {
  test::RandomMetadata random(4);
  const SnapshotMetadata metadata = nested(random, 900);
  const std::string intact = write_index(metadata, kTake, {});
  const auto read_all = [](Stored& stored) {
    Manifest all;
    const ManifestIndex index = stored.open();
    for (const char* key : {"k0", "k1", "k2", "k3"}) {
      for (const char* tail : {"", "-a", "-b", "-c", "-d"}) index.select(std::string(key) + tail, true, all);
    }
    return all;
  };
  Stored whole{intact};
  const Manifest expected = read_all(whole);
  int errors = 0;
  for (int round = 0; round < 3000; ++round) {
    Stored stored{intact};
    const auto at = static_cast<std::size_t>(random.number(static_cast<std::int64_t>(intact.size())));
    if (round % 10 == 0) {
      stored.bytes.resize(at);
    } else {
      stored.bytes[at] = static_cast<char>(stored.bytes[at] ^ (1 + random.number(255)));
    }
    try {
      EXPECT_EQ(read_all(stored), expected);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorrupt) << error.what();
      ++errors;
    }
  }
  EXPECT_GT(errors, 2500);
}

}  // namespace
}  // namespace torchsnapshot
