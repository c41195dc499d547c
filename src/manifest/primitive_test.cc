#include "manifest/primitive.h"

#include <bit>
#include <cmath>
#include <random>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "manifest/test_support.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

TEST(PrimitiveTest, FloatReprIsPythons) {
  std::istringstream lines(test::read_file(test::tests_dir() / "data/metadata/python_float_repr.txt"));
  int count = 0;
  for (std::string serialized, repr; lines >> serialized >> repr; ++count) {
    const Value value = primitive_value({PrimitiveType::kFloat, serialized, std::nullopt, false});
    const double number = *value.get_if<double>();
    ASSERT_EQ(python_float_repr(number), repr);
    const PrimitiveEntry entry = make_primitive_entry(value, true);
    ASSERT_EQ(entry, (PrimitiveEntry{PrimitiveType::kFloat, serialized, repr, true}));
  }
  EXPECT_EQ(count, 600);
}

TEST(PrimitiveTest, FloatsKeepEveryBit) {
  std::mt19937_64 rng(1);
  for (int i = 0; i < 2000; ++i) {
    // Some of them NaNs with a payload.
    const std::uint64_t bits = i % 4 == 0 ? rng() | 0x7FF0000000000000ULL : rng();
    const Value back = primitive_value(make_primitive_entry(Value(std::bit_cast<double>(bits)), false));
    ASSERT_EQ(std::bit_cast<std::uint64_t>(*back.get_if<double>()), bits);
    const double value = std::bit_cast<double>(bits);
    if (!std::isnan(value)) {
      ASSERT_EQ(std::stod("0") + std::strtod(python_float_repr(value).c_str(), nullptr), value);
    }
  }
}

TEST(PrimitiveTest, OthersRoundTrip) {
  const std::string big = "-" + std::string(5000, '7');
  for (const std::string& decimal : {std::string("0"), std::string("-1"), std::string("10"), big}) {
    const PrimitiveEntry entry = make_primitive_entry(Value(Integer(decimal)), false);
    EXPECT_EQ(entry, (PrimitiveEntry{PrimitiveType::kInt, decimal, std::nullopt, false}));
    EXPECT_EQ(primitive_value(entry).get_if<Integer>()->decimal, decimal);
  }
  for (const bool flag : {false, true}) {
    const PrimitiveEntry entry = make_primitive_entry(Value(flag), true);
    EXPECT_EQ(entry, (PrimitiveEntry{PrimitiveType::kBool, flag ? "True" : "False", std::nullopt, true}));
    EXPECT_EQ(*primitive_value(entry).get_if<bool>(), flag);
  }
  const PrimitiveEntry text = make_primitive_entry(Value(std::string("a\0b", 3)), false);
  EXPECT_EQ(text.serialized_value, std::string("a\0b", 3));
  EXPECT_EQ(*primitive_value(text).get_if<std::string>(), std::string("a\0b", 3));
  EXPECT_THROW(make_primitive_entry(Value(List{}), false), Error);
}

TEST(PrimitiveTest, Base64OfKnownTexts) {
  // RFC 4648, section 10.
  const std::pair<const char*, const char*> cases[] = {{"", ""},
                                                       {"f", "Zg=="},
                                                       {"fo", "Zm8="},
                                                       {"foo", "Zm9v"},
                                                       {"foob", "Zm9vYg=="},
                                                       {"fooba", "Zm9vYmE="},
                                                       {"foobar", "Zm9vYmFy"}};
  for (const auto& [bytes, text] : cases) {
    EXPECT_EQ(base64_encode(bytes), text);
    EXPECT_EQ(base64_decode(text), bytes);
  }
  EXPECT_EQ(base64_encode("\xfb\xff"), "+/8=");
}

TEST(PrimitiveTest, Base64RoundTripsAndIsCanonical) {
  std::mt19937 rng(2);
  for (int i = 0; i < 1000; ++i) {
    std::string bytes(rng() % 20, '\0');
    for (char& c : bytes) c = static_cast<char>(rng());
    std::string text = base64_encode(bytes);
    ASSERT_EQ(base64_decode(text), bytes);
    if (text.empty()) continue;
    // Any other text is refused, or means other bytes.
    text[rng() % text.size()] = static_cast<char>(rng());
    try {
      const std::string other = base64_decode(text);
      ASSERT_EQ(base64_encode(other), text);
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), ErrorCode::kCorrupt);
    }
  }
  for (const char* bad :
       {"A", "AA", "AAA", "AA=A", "=AAA", "A===", "====", "AB==", "AAB=", "AA==AAAA", "AA A", "AAA\n"}) {
    EXPECT_THROW(base64_decode(bad), Error) << bad;
  }
}

TEST(PrimitiveTest, MalformedTextIsAnError) {
  const std::pair<PrimitiveType, const char*> cases[] = {{PrimitiveType::kInt, ""},
                                                         {PrimitiveType::kInt, "-"},
                                                         {PrimitiveType::kInt, "+1"},
                                                         {PrimitiveType::kInt, "01"},
                                                         {PrimitiveType::kInt, "-0"},
                                                         {PrimitiveType::kInt, " 1"},
                                                         {PrimitiveType::kInt, "1_000"},
                                                         {PrimitiveType::kInt, "1.0"},
                                                         {PrimitiveType::kBool, "true"},
                                                         {PrimitiveType::kBool, ""},
                                                         {PrimitiveType::kFloat, ""},
                                                         {PrimitiveType::kFloat, "3.5"},
                                                         {PrimitiveType::kFloat, "AAAA"},
                                                         {PrimitiveType::kFloat, "AAAAAAAAAA=="},
                                                         {PrimitiveType::kFloat, "AAAAAAAAAAAA"},
                                                         {PrimitiveType::kBytes, "A"}};
  for (const auto& [type, text] : cases) {
    EXPECT_THROW(primitive_value({type, text, std::nullopt, false}), Error) << text;
  }
}

}  // namespace
}  // namespace torchsnapshot
