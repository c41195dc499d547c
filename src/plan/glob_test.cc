#include "plan/glob.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "plan/write_plan.h"

namespace torchsnapshot {
namespace {

/// Columns of a file of cases beside the tests; lines that begin with "# " are comments.
std::vector<std::vector<std::string>> read_cases(const std::string& name) {
  std::ifstream file(std::filesystem::path(__FILE__).parent_path() / "../../tests/data" / name);
  std::vector<std::vector<std::string>> cases;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("# ")) continue;
    std::vector<std::string>& columns = cases.emplace_back(1);
    for (const char c : line) {
      if (c == '\t') {
        columns.emplace_back();
      } else {
        columns.back() += c;
      }
    }
  }
  return cases;
}

TEST(Glob, AsPythonsFnmatchcase) {
  const auto cases = read_cases("fnmatch_cases.txt");
  ASSERT_GT(cases.size(), 400U);
  int matches = 0;
  for (const auto& columns : cases) {
    ASSERT_EQ(columns.size(), 3U);
    const bool expected = columns[0] == "1";
    EXPECT_EQ(glob_match(columns[1], columns[2]), expected) << "pattern " << columns[1] << " text " << columns[2];
    matches += expected ? 1 : 0;
  }
  EXPECT_GT(matches, 200);
}

TEST(Glob, StarsAndQuestionMarksCrossLinesAndSlashes) {
  EXPECT_TRUE(glob_match("a*c", "a\n/c"));
  EXPECT_TRUE(glob_match("a?c", "a\nc"));
  EXPECT_FALSE(glob_match("a", "a\n"));
}

TEST(Glob, BytesThatAreNoUtf8CountAsOneEach) {
  EXPECT_TRUE(glob_match("?", "\xFF"));
  EXPECT_TRUE(glob_match("??", "\xC3("));
  EXPECT_TRUE(glob_match("\xFF*", "\xFF/x"));
  EXPECT_FALSE(glob_match("\xFE", "\xFF"));
  EXPECT_TRUE(glob_match("a?", "a\xE6"));  // cut off
  EXPECT_TRUE(glob_match("?", "\xF0\x9F\x98\x80"));
}

TEST(Glob, ManyStarsTakeNoExponentialTime) {
  std::string pattern;
  for (int i = 0; i < 40; ++i) pattern += "*a";
  pattern += "b";
  EXPECT_FALSE(glob_match(pattern, std::string(20000, 'a')));
}

TEST(Glob, OneObjectMatchesManyTexts) {
  const Glob glob("model/*[!.]weight");
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(glob.matches("model/0/weight"));
    EXPECT_FALSE(glob.matches("model/0.weight"));
  }
}

}  // namespace
}  // namespace torchsnapshot
