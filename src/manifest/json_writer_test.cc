#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "manifest/readers.h"
#include "manifest/test_support.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot {
namespace {

std::vector<std::filesystem::path> python_made_files() {
  std::vector<std::filesystem::path> files;
  for (const auto& item : std::filesystem::directory_iterator(test::tests_dir() / "data/metadata")) {
    if (item.path().extension() == ".json") files.push_back(item.path());
  }
  for (const auto& item : std::filesystem::directory_iterator(test::tests_dir() / "data/corpus")) {
    const auto file = item.path() / "snapshot/.snapshot_metadata";
    if (std::filesystem::exists(file) && test::read_file(file)[0] == '{') files.push_back(file);
  }
  return files;
}

TEST(JsonWriterTest, WritesWhatPythonWrote) {
  const auto files = python_made_files();
  ASSERT_GE(files.size(), 14U);
  for (const auto& file : files) {
    const std::string text = test::read_file(file);
    EXPECT_EQ(write_metadata(parse_metadata(text)), text) << file;
  }
}

TEST(JsonWriterTest, EveryKindOfEntry) {
  SnapshotMetadata metadata{"1.0", 2, {}};
  metadata.manifest.add("0/d", DictEntry{{Key("a\n"), Key(Integer(-3))}, true});
  metadata.manifest.add("0/l", ListEntry{});
  EXPECT_EQ(write_metadata(metadata), R"({
  "version": "1.0",
  "world_size": 2,
  "manifest": {
    "0/d": {
      "type": "OrderedDict",
      "keys": [
        "a\n",
        -3
      ]
    },
    "0/l": {
      "type": "list"
    }
  }
})");
}

TEST(JsonWriterTest, ReaderGivesBackWhatWasWritten) {
  for (unsigned seed = 0; seed < 500; ++seed) {
    test::RandomMetadata random(seed);
    const SnapshotMetadata metadata = random.make(seed % 40);
    const std::string text = write_metadata(metadata);
    for (const char c : text) {
      // ASCII but for the four-byte sequences of characters above U+FFFF.
      const auto byte = static_cast<unsigned char>(c);
      ASSERT_TRUE(c == '\n' || (byte >= 0x20 && byte < 0x7F) || (byte >= 0x80 && byte < 0xC0) || byte >= 0xF0);
    }
    const SnapshotMetadata back = parse_metadata(text);
    ASSERT_EQ(back.version, metadata.version);
    ASSERT_EQ(back.world_size, metadata.world_size);
    ASSERT_EQ(back.manifest, metadata.manifest) << "seed " << seed;
    ASSERT_EQ(write_metadata(back), text);
  }
}

TEST(JsonWriterTest, TextThatIsNotUtf8IsAnErrorThatNamesTheEntry) {
  SnapshotMetadata metadata{"1.0", 1, {}};
  metadata.manifest.add("0/x", PrimitiveEntry{PrimitiveType::kStr, "a\xff", std::nullopt, false});
  try {
    write_metadata(metadata);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("'0/x'"), testing::HasSubstr("'a\\xff'")));
  }
}

}  // namespace
}  // namespace torchsnapshot
