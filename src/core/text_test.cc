#include "core/text.h"

#include <cstdint>
#include <string>

#include "gtest/gtest.h"

namespace torchsnapshot {
namespace {

TEST(TextTest, EveryCodePointRoundTrips) {
  for (char32_t code_point = 0; code_point <= 0x10FFFF; ++code_point) {
    std::string text = "x";
    append_utf8(code_point, text);
    const bool surrogate = code_point >= 0xD800 && code_point < 0xE000;
    ASSERT_EQ(utf8_sequence(text, 1, Surrogates::kAccept), text.size() - 1) << static_cast<unsigned>(code_point);
    ASSERT_EQ(utf8_sequence(text, 1, Surrogates::kRefuse), surrogate ? 0 : text.size() - 1)
        << static_cast<unsigned>(code_point);
    ASSERT_EQ(decode_utf8(text, 1, text.size() - 1), code_point);
    if (code_point < 0x80) continue;
    ASSERT_EQ(utf8_sequence(std::string_view(text).substr(0, text.size() - 1), 1, Surrogates::kAccept), 0U)
        << "cut off";
    ASSERT_EQ(utf8_sequence(text, 2, Surrogates::kAccept), 0U) << "begins inside";
  }
}

TEST(TextTest, ExactlyOneSequencePerCodePoint) {
  // Of all sequences of up to four bytes with that many continuation bytes, as many are accepted as there are
  // code points of that length: none is overlong or too large.
  std::size_t accepted[5] = {};
  for (std::uint32_t lead = 0; lead < 256; ++lead) {
    for (std::uint32_t rest = 0; rest < 64 * 64 * 2; ++rest) {
      // The last continuation byte is never special; two of its 64 values will do.
      const std::string text = {static_cast<char>(lead), static_cast<char>(0x80 | (rest >> 7)),
                                static_cast<char>(0x80 | ((rest >> 1) & 63)),
                                static_cast<char>((rest & 1) == 0 ? 0x80 : 0xBF)};
      ++accepted[utf8_sequence(text, 0, Surrogates::kAccept)];
    }
  }
  EXPECT_EQ(accepted[1], 0x80U * 64 * 64 * 2);
  EXPECT_EQ(accepted[2], (0x800U - 0x80) * 64 * 2);
  EXPECT_EQ(accepted[3], (0x10000U - 0x800) * 2);
  EXPECT_EQ(accepted[4], (0x110000U - 0x10000) / 64 * 2);
}

TEST(TextTest, QuotedIsPrintableAndShort) {
  EXPECT_EQ(quote_text("0/a"), "'0/a'");
  EXPECT_EQ(quote_text(""), "''");
  EXPECT_EQ(quote_text("a\n\x7f\xff\xc3\xa9"), "'a\\x0a\\x7f\\xff\xc3\xa9'");
  std::string text;
  for (int i = 0; i < 1000; ++i) text += "\xc3\xa9";
  const std::string shown = quote_text("x" + text);
  EXPECT_LT(shown.size(), 230U);
  EXPECT_NE(shown.find("[...]"), std::string::npos);
  EXPECT_EQ(shown.find("\\x"), std::string::npos) << "cut inside a character: " << shown;
}

}  // namespace
}  // namespace torchsnapshot
