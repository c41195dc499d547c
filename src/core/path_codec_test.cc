#include "core/path_codec.h"

#include <algorithm>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

std::string random_text(std::mt19937& rng, std::string_view alphabet, std::size_t most) {
  std::string text(rng() % (most + 1), '\0');
  for (char& c : text) c = alphabet.empty() ? static_cast<char>(rng()) : alphabet[rng() % alphabet.size()];
  return text;
}

TEST(PathCodecTest, Examples) {
  EXPECT_EQ(encode_component("a/b%2F"), "a%2Fb%252F");
  EXPECT_EQ(decode_component("a%2Fb%252F"), "a/b%2F");
  EXPECT_EQ(decode_component("%41%4a%4A%2f"), "AJJ/");
  EXPECT_EQ(decode_component("%"), "%");
  EXPECT_EQ(decode_component("%4"), "%4");
  EXPECT_EQ(decode_component("%zz%4g100%"), "%zz%4g100%");
  EXPECT_EQ(decode_component("%%41"), "%A");
}

TEST(PathCodecTest, EncodedComponentsComeBackAndHoldNoSlash) {
  std::mt19937 rng(1);
  for (int i = 0; i < 2000; ++i) {
    const std::string text = random_text(rng, i % 2 == 0 ? "" : "%/2F5a", 20);
    const std::string encoded = encode_component(text);
    ASSERT_EQ(encoded.find('/'), std::string::npos);
    ASSERT_EQ(decode_component(encoded), text);
  }
}

TEST(PathCodecTest, JoinAndSplit) {
  EXPECT_EQ(join_path("", "a"), "a");
  EXPECT_EQ(join_path("a", ""), "a/");
  EXPECT_EQ(parent_path("a"), "");
  EXPECT_EQ(last_component("a"), "a");
  EXPECT_EQ(parent_path("a/b/"), "a/b");
  EXPECT_EQ(last_component("a/b/"), "");
  std::mt19937 rng(2);
  for (int i = 0; i < 500; ++i) {
    const std::string parent = "p" + random_text(rng, "ab/", 10);
    const std::string child = random_text(rng, "ab%", 5);
    const std::string path = join_path(parent, child);
    ASSERT_EQ(parent_path(path), parent);
    ASSERT_EQ(last_component(path), child);
  }
}

bool is_refused(std::string_view location) {
  try {
    check_location(location);
    return false;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
    return true;
  }
}

TEST(PathCodecTest, LocationsStayInside) {
  using namespace std::string_view_literals;
  for (const std::string_view good : {"a", "0/m/w", "a/../b", "a/b/../../c", "./a", "a//b", "...", "..a", "a/.../b"}) {
    EXPECT_FALSE(is_refused(good)) << good;
  }
  for (const std::string_view bad :
       {""sv, "/"sv, "/a"sv, ".."sv, "../a"sv, "a/../.."sv, "a/../../b"sv, "a/.."sv, "."sv, "a\0b"sv, "./.."sv}) {
    EXPECT_TRUE(is_refused(bad)) << bad;
  }
}

TEST(PathCodecTest, LocationAgreesWithWalkingThePath) {
  std::mt19937 rng(3);
  for (int i = 0; i < 3000; ++i) {
    const std::string location = random_text(rng, "a../", 12);
    // Walk it from a folder and see whether it ever leaves.
    int depth = 0;
    bool leaves = location.empty() || location[0] == '/';
    std::string component;
    for (const char c : location + "/") {
      if (c != '/') {
        component += c;
        continue;
      }
      depth += component == ".." ? -1 : component.empty() || component == "." ? 0 : 1;
      leaves = leaves || depth < 0;
      component.clear();
    }
    ASSERT_EQ(is_refused(location), leaves || depth == 0) << location;
  }
}

std::size_t plain_distance(const std::string& a, const std::string& b) {
  std::vector<std::vector<std::size_t>> d(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) {
    for (std::size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
      } else {
        d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      }
    }
  }
  return d[a.size()][b.size()];
}

TEST(PathCodecTest, NearMissesAreTheNearest) {
  EXPECT_THAT(near_misses("0/model/weight", {"0/model/bias", "0/model/weigth", "0/model/weights", "1/optim"}, 2),
              testing::ElementsAre("0/model/weights", "0/model/weigth"));
  EXPECT_THAT(near_misses("abc", {"abd"}, 0), testing::IsEmpty());
  EXPECT_THAT(near_misses("ab", {"ac"}, 5), testing::IsEmpty()) << "a third of two is none";
  std::mt19937 rng(4);
  for (int i = 0; i < 500; ++i) {
    const std::string wanted = random_text(rng, "ab/", 12);
    std::vector<std::string> candidates(rng() % 12);
    for (std::string& candidate : candidates) candidate = random_text(rng, "ab/", 12);
    std::vector<std::string> expected;
    for (const std::string& candidate : candidates) {
      if (plain_distance(wanted, candidate) <= wanted.size() / 3) expected.push_back(candidate);
    }
    std::stable_sort(expected.begin(), expected.end(), [&](const std::string& a, const std::string& b) {
      return plain_distance(wanted, a) < plain_distance(wanted, b);
    });
    const std::size_t count = rng() % 5;
    if (expected.size() > count) expected.resize(count);
    ASSERT_EQ(near_misses(wanted, candidates, count), expected) << wanted;
  }
}

}  // namespace
}  // namespace torchsnapshot
