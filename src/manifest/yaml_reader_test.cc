#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "manifest/readers.h"
#include "manifest/test_support.h"
#include "manifest/yaml_scalar.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot {
namespace {

TEST(YamlScalarTest, ResolvesAsPyYaml) {
  const std::pair<ScalarKind, std::vector<std::string_view>> cases[] = {
      {ScalarKind::kString,
       {"a",     "0.1.0", "0/state", "torch.float32", "100%",   "-",           "+",   "1e5", "1.5e5", "0b",
        "0x",    "08",    "1:60",    "0:30",          "2026-1", "2026-11-23x", "nan", "inf", ".",     "..",
        "-.nan", "y",     "n",       "yEs",           "1-2",    "+a",          "_1",  "."}},
      {ScalarKind::kInteger, {"0", "5", "-7", "12345678901234567890123"}},
      {ScalarKind::kBool, {"true", "False", "YES", "no", "On", "off"}},
      {ScalarKind::kNull, {"", "~", "null", "NULL"}},
      {ScalarKind::kOther,
       {"1.5", "1.",    ".5", "-1.5", "1.5e+3",   ".inf",   "-.INF",      ".NaN",           "0x1F", "0b1", "010",
        "-00", "1_000", "+5", "1:30", "-1:30:59", "1:30.5", "2026-11-23", "2026-1-2 3:4:5", "<<",   "=",   "1_0.5"}},
  };
  for (const auto& [kind, texts] : cases) {
    for (const std::string_view text : texts) {
      EXPECT_EQ(static_cast<int>(resolve_plain_scalar(text)), static_cast<int>(kind)) << text;
    }
  }
}

class YamlReaderTest : public testing::Test {
 protected:
  void SetUp() override {
    try {
      read_yaml_metadata("a: b");
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnsupported) return;
      EXPECT_THAT(error.what(), testing::HasSubstr("apt-get install libyaml-cpp-dev"));
      GTEST_SKIP() << "built without yaml-cpp";
    }
  }
};

TEST_F(YamlReaderTest, ReadsTheSameFromYamlAsFromJson) {
  const auto folder = test::tests_dir() / "data/metadata";
  const SnapshotMetadata expected = parse_metadata(test::read_file(folder / "yaml_pair.json"));
  ASSERT_GT(expected.manifest.size(), 15U);
  for (const char* name : {"block", "flow", "reversed", "python_dumper"}) {
    const SnapshotMetadata found =
        parse_metadata(test::read_file(folder / ("yaml_pair_" + std::string(name) + ".yaml")));
    EXPECT_EQ(found.version, expected.version) << name;
    EXPECT_EQ(found.world_size, expected.world_size) << name;
    EXPECT_EQ(write_metadata(found), write_metadata(expected)) << name;
  }
}

TEST_F(YamlReaderTest, CorpusIsTheSameAsInJson) {
  const auto read = [](const char* name) {
    return parse_metadata(test::read_file(test::tests_dir() / "data/corpus" / name / "snapshot/.snapshot_metadata"));
  };
  for (const char* name : {"containers", "tensors_batched"}) {
    const SnapshotMetadata from_json = read(name);
    const SnapshotMetadata from_yaml = read(("yaml_" + std::string(name)).c_str());
    ASSERT_EQ(from_yaml.manifest.size(), from_json.manifest.size());
    for (const auto& [path, entry] : from_json.manifest) {
      const Entry* found = from_yaml.manifest.find(path);
      ASSERT_NE(found, nullptr) << path;
      EXPECT_EQ(entry_type_name(*found), entry_type_name(entry)) << path;
      if (is_container(entry)) {
        EXPECT_EQ(*found, entry) << path;
      }
    }
  }
}

TEST_F(YamlReaderTest, ErrorsTellTheirPlace) {
  try {
    parse_metadata("version: 0.1.0\nworld_size: 1\nmanifest:\n  0/a:\n    type: dict\n    keys: 5\n");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "snapshot metadata: entry '0/a': field 'keys': line 6, column 11: expected a list, found a number");
  }
}

TEST_F(YamlReaderTest, AliasesStandForTheirAnchors) {
  const SnapshotMetadata metadata = parse_metadata(
      "version: &v 0.1.0\nworld_size: &n 2\nmanifest:\n  0/a: &d\n    type: dict\n    keys: &k [x, *n, *v]\n"
      "  0/b: *d\n  0/c: {type: OrderedDict, keys: *k}\n");
  const std::vector<Key> keys = {Key("x"), Key(Integer(2)), Key("0.1.0")};
  EXPECT_EQ(std::get<DictEntry>(*metadata.manifest.find("0/b")).keys, keys);
  EXPECT_EQ(std::get<DictEntry>(*metadata.manifest.find("0/c")), (DictEntry{keys, true}));
}

TEST_F(YamlReaderTest, MutationsNeverCrash) {
  const std::string sample = test::read_file(test::tests_dir() / "data/metadata/yaml_pair_block.yaml");
  std::mt19937 rng(6);
  int accepted = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text = sample;
    for (std::size_t edits = 1 + rng() % 3; edits > 0; --edits) {
      const std::size_t at = rng() % text.size();
      constexpr std::string_view kBytes = "[]{}:-?&*!|>'\"%@`#,\n \t0a\\\xff";
      switch (rng() % 3) {
        case 0:
          text[at] = kBytes[rng() % kBytes.size()];
          break;
        case 1:
          text.insert(at, 1, kBytes[rng() % kBytes.size()]);
          break;
        default:
          text.erase(at, rng() % 20);
      }
    }
    try {
      parse_metadata(text);
      ++accepted;
    } catch (const Error&) {
    }
  }
  EXPECT_GT(accepted, 100);
  EXPECT_LT(accepted, 2900);
}

}  // namespace
}  // namespace torchsnapshot
