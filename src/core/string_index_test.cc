#include "core/string_index.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <unordered_map>

namespace torchsnapshot {
namespace {

TEST(StringIndex, FindsWhatAMapFinds) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::string> words;
    for (std::size_t i = random() % 300; i > 0; --i) words.push_back(std::to_string(random() % 400));
    StringIndex index(random() % 64);
    std::unordered_map<std::string, std::size_t> map;
    for (std::size_t i = 0; i < words.size(); ++i) {
      EXPECT_EQ(index.add(words[i], i), map.emplace(words[i], i).second);
    }
    for (int word = 0; word < 400; ++word) {
      const std::string text = std::to_string(word);
      const auto found = map.find(text);
      EXPECT_EQ(index.find(text), found == map.end() ? std::nullopt : std::optional(found->second));
    }
  }
}

TEST(StringIndex, AnEmptyStringIsAString) {
  StringIndex index(0);
  EXPECT_EQ(index.find(""), std::nullopt);
  EXPECT_TRUE(index.add("", 3));
  EXPECT_FALSE(index.add("", 4));
  EXPECT_EQ(index.find(""), 3U);
}

}  // namespace
}  // namespace torchsnapshot
