// JsonCursor against nlohmann-json, on documents of any shape.
#include "manifest/json_cursor.h"

#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "core/text.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "manifest/test_support.h"

namespace torchsnapshot {
namespace {

using nlohmann::json;

/// The whole document as a tree. Throws Error.
json read_any(JsonCursor& cursor) {
  switch (cursor.peek()) {
    case ValueKind::kObject: {
      json object = json::object();
      cursor.begin_object();
      for (std::string_view key; cursor.next_key(key);) {
        std::string name(key);
        object[name] = read_any(cursor);
      }
      return object;
    }
    case ValueKind::kArray: {
      json array = json::array();
      cursor.begin_array();
      while (cursor.next_element()) array.push_back(read_any(cursor));
      return array;
    }
    case ValueKind::kString:
      return std::string(cursor.string());
    case ValueKind::kNumber: {
      const std::string text(cursor.number());
      json number = json::parse(text, nullptr, false);
      return number.is_discarded() ? json(text) : number;  // more than a double holds
    }
    case ValueKind::kBool:
      return cursor.boolean();
    case ValueKind::kNull:
      cursor.null();
      return nullptr;
    case ValueKind::kOther:
      break;
  }
  throw std::logic_error("JSON has no other kinds");
}

/// Our tree, or nothing when the text is refused.
std::optional<json> ours(const std::string& text) {
  try {
    JsonCursor cursor(text);
    json document = read_any(cursor);
    cursor.finish();
    return document;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
    EXPECT_THAT(error.what(), testing::ContainsRegex("^line [0-9]+, column [0-9]+: not valid JSON: "));
    return std::nullopt;
  }
}

void expect_agreement(const std::string& text) {
  json theirs = json::parse(text, nullptr, false);
  const std::optional<json> mine = ours(text);
  if (theirs.is_discarded() && mine) {
    // Lone surrogates are the one thing that we accept beyond RFC 8259's interoperable texts, and numbers above
    // what a double holds are none of the grammar's business.
    try {
      const json document = json::parse(text);
      FAIL() << "flaky parser";
    } catch (const json::exception& error) {
      ASSERT_THAT(error.what(), testing::AnyOf(testing::HasSubstr("surrogate"), testing::HasSubstr("out_of_range")))
          << text;
    }
    return;
  }
  ASSERT_EQ(!theirs.is_discarded(), mine.has_value()) << text;
  if (mine) {
    ASSERT_EQ(*mine, theirs) << text;
  }
}

class RandomJson {
 public:
  explicit RandomJson(unsigned seed) : rng_(seed), strings_(seed) {}

  std::string value(int depth) {
    switch (rng_() % (depth > 0 ? 8 : 6)) {
      case 0:
        return rng_() % 2 == 0 ? "true" : "false";
      case 1:
        return "null";
      case 2:
        return number();
      case 3:
      case 4:
      case 5:
        return string();
      case 6: {
        std::string out = "[" + blank();
        const std::size_t count = rng_() % 4;
        for (std::size_t i = 0; i < count; ++i) out += (i == 0 ? "" : ",") + value(depth - 1);
        return blank() + out + "]" + blank();
      }
      default: {
        std::string out = "{" + blank();
        const std::size_t count = rng_() % 4;
        for (std::size_t i = 0; i < count; ++i) {
          out += (i == 0 ? "" : ",") + blank() + string() + blank() + ":" + value(depth - 1);
        }
        return blank() + out + "}" + blank();
      }
    }
  }

  std::mt19937& rng() { return rng_; }

 private:
  std::string blank() {
    constexpr const char* kBlanks[] = {"", "", "\n", " ", "\t", "\r\n", "          ", "\n        "};
    return kBlanks[rng_() % 8];
  }

  std::string number() {
    std::string out = rng_() % 2 == 0 ? "-" : "";
    out += std::to_string(rng_() % 1000);
    if (rng_() % 3 == 0) out += "." + std::to_string(rng_() % 1000);
    if (rng_() % 3 == 0) out += (rng_() % 2 == 0 ? "e" : "E+") + std::to_string(rng_() % 20);
    return out;
  }

  std::string string() {
    std::string out = "\"";
    const std::string text = strings_.text(12);
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t length = utf8_sequence(text, at, Surrogates::kAccept);
      const char32_t c = decode_utf8(text, at, length);
      const bool surrogate = c >= 0xD800 && c < 0xE000;
      if (c < 0x20 || c == '"' || c == '\\' || surrogate || (c < 0x10000 && rng_() % 4 == 0)) {
        constexpr const char* kFormats[] = {"\\u%04x", "\\u%04X"};
        char buffer[8];
        std::snprintf(buffer, sizeof buffer, kFormats[rng_() % 2], static_cast<unsigned>(surrogate ? 'x' : c));
        out += buffer;
      } else {
        out += text.substr(at, length);
      }
      at += length;
    }
    if (rng_() % 4 == 0) out += R"(\n\"\\\/\b\f\r\t\uD83D\ude00)";
    return out + "\"";
  }

  std::mt19937 rng_;
  test::RandomMetadata strings_;
};

TEST(JsonCursorTest, AgreesOnRandomDocuments) {
  int accepted = 0;
  for (unsigned seed = 0; seed < 2000; ++seed) {
    RandomJson random(seed);
    const std::string text = random.value(4);
    ASSERT_NO_FATAL_FAILURE(expect_agreement(text));
    accepted += ours(text).has_value() ? 1 : 0;
  }
  EXPECT_EQ(accepted, 2000);
}

TEST(JsonCursorTest, AgreesOnMutatedDocuments) {
  constexpr std::string_view kBytes = "{}[]\",:\\u0123456789abcdefDE.-+tfn \n\t\xff\xc3\xa9\xed\xa0\x80/\x01";
  int accepted = 0;
  constexpr int kCases = 20000;
  for (int i = 0; i < kCases; ++i) {
    RandomJson random(static_cast<unsigned>(i));
    std::string text = random.value(3);
    for (std::size_t edits = 1 + random.rng()() % 3; edits > 0 && !text.empty(); --edits) {
      const std::size_t at = random.rng()() % text.size();
      const char byte = kBytes[random.rng()() % kBytes.size()];
      switch (random.rng()() % 4) {
        case 0:
          text[at] = byte;
          break;
        case 1:
          text.insert(at, 1, byte);
          break;
        case 2:
          text.erase(at, 1);
          break;
        default:
          text.erase(at);
      }
    }
    // nlohmann-json skips a byte order mark.
    ASSERT_NO_FATAL_FAILURE(expect_agreement(text));
    accepted += ours(text).has_value() ? 1 : 0;
  }
  EXPECT_GT(accepted, kCases / 20);
  EXPECT_LT(accepted, kCases * 19 / 20);
}

TEST(JsonCursorTest, AgreesOnGrammarCorners) {
  for (const char* text : {"",
                           " ",
                           "0",
                           "-0",
                           "00",
                           "-",
                           "1.",
                           ".5",
                           "1.e5",
                           "1e",
                           "1e+",
                           "1E-07",
                           "+1",
                           "0x1",
                           "1 2",
                           "tru",
                           "truee",
                           "True",
                           "nul",
                           "[,]",
                           "[1,]",
                           "[1 2]",
                           "[",
                           "]",
                           "{",
                           "}",
                           "{,}",
                           "{\"a\"}",
                           "{\"a\":}",
                           "{\"a\":1,}",
                           "{a:1}",
                           "{1:1}",
                           "\"",
                           "\"\\\"",
                           "\"\\u12\"",
                           "\"\\u123g\"",
                           "\"\\x\"",
                           "\"\t\"",
                           "\"\x7f\"",
                           "\"\\ud83d\\ude00\"",
                           "\"\\u0000\"",
                           "\xef\xbb\xbf",
                           "1//",
                           "/**/1",
                           "'a'",
                           "NaN",
                           "Infinity",
                           "[1,,2]",
                           "[[]",
                           "{\"a\":{}",
                           "\"\xc0\x80\"",
                           "\"\xf5\"",
                           "\"12345678\\u00e9 and more than eight\"",
                           "\"1234567\xc3\xa9\"",
                           "\"1234567\n\""}) {
    ASSERT_NO_FATAL_FAILURE(expect_agreement(text));
  }
}

TEST(JsonCursorTest, LoneSurrogatesBecomeWtf8) {
  EXPECT_EQ(ours(R"("\ud800")"), json("\xed\xa0\x80"));
  EXPECT_EQ(ours(R"("\udfff!")"), json("\xed\xbf\xbf!"));
  EXPECT_EQ(ours(R"("\ud800\ud83d\ude00")"), json("\xed\xa0\x80\xf0\x9f\x98\x80"));
  EXPECT_EQ(ours(R"("\ud800\n")"), json("\xed\xa0\x80\n"));
  EXPECT_FALSE(ours(R"("\ud800\u12")"));
}

TEST(JsonCursorTest, ErrorsTellTheirPlace) {
  JsonCursor cursor("{\n  \"a\": [1,\n 2 x]}");
  cursor.begin_object();
  std::string_view key;
  ASSERT_TRUE(cursor.next_key(key));
  cursor.begin_array();
  ASSERT_TRUE(cursor.next_element());
  EXPECT_EQ(cursor.integer(), 1);
  ASSERT_TRUE(cursor.next_element());
  EXPECT_EQ(cursor.integer(), 2);
  try {
    cursor.next_element();
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "line 3, column 4: not valid JSON: expected ',' or ']', found 'x'");
  }
}

}  // namespace
}  // namespace torchsnapshot
