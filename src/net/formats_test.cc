// Encodings, hashes, URLs, dates, XML, JSON.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "net/encoding.h"
#include "net/json.h"
#include "net/sha256.h"
#include "net/time_text.h"
#include "net/url.h"
#include "net/xml.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using namespace std::string_literals;

template <typename Action>
std::string error_of(ErrorCode code, Action action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.code()), to_string(code)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

TEST(Encoding, PublishedVectors) {
  EXPECT_EQ(to_base64(as_octets("")), "");
  EXPECT_EQ(to_base64(as_octets("f")), "Zg==");
  EXPECT_EQ(to_base64(as_octets("fo")), "Zm8=");
  EXPECT_EQ(to_base64(as_octets("foobar")), "Zm9vYmFy");
  EXPECT_EQ(to_base64url(as_octets("\xfb\xff\xfe")), "-__-");
  EXPECT_EQ(to_base64url(as_octets("f")), "Zg");
  EXPECT_EQ(to_hex(as_octets("\x01\xab\xff")), "01abff");
}

TEST(Encoding, Percent) {
  EXPECT_EQ(percent_encode("aZ09-_.~"), "aZ09-_.~");
  EXPECT_EQ(percent_encode("a b/+%\xc3\xa9"), "a%20b%2F%2B%25%C3%A9");
  EXPECT_EQ(percent_encode("a b/c", true), "a%20b/c");
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    std::string text(random() % 20, ' ');
    for (char& c : text) c = static_cast<char>(random());
    EXPECT_EQ(percent_decode(percent_encode(text)), text);
  }
  EXPECT_EQ(percent_decode("a+b%2f"), "a+b/");
  for (const char* bad : {"%", "%1", "a%zz", "%1g"}) EXPECT_EQ(percent_decode(bad), std::nullopt) << bad;
}

TEST(Sha256, PublishedVectors) {
  EXPECT_EQ(to_hex(sha256("")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(to_hex(sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(to_hex(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(to_hex(sha256(std::string(1'000'000, 'a'))),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  // RFC 4231, cases 1, 2 and 6 (a key longer than a block).
  EXPECT_EQ(to_hex(hmac_sha256(as_octets(std::string(20, '\x0b')), "Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  EXPECT_EQ(to_hex(hmac_sha256(as_octets("Jefe"), "what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_EQ(to_hex(hmac_sha256(as_octets(std::string(131, '\xaa')),
                               "Test Using Larger Than Block-Size Key - Hash Key First")),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

TEST(HttpUrl, Parts) {
  EXPECT_EQ(parse_http_url("http://Host:80/a%20b?x=1", "e"), (HttpUrl{"http", "host", "/a%20b", "x=1"}));
  EXPECT_EQ(parse_http_url("https://h:8443", "e"), (HttpUrl{"https", "h:8443", "", ""}));
  EXPECT_EQ(parse_http_url("minio.local:9000/", "e"), (HttpUrl{"https", "minio.local:9000", "/", ""}));
  EXPECT_EQ(parse_http_url("http://[::1]:9000", "e").authority, "[::1]:9000");
  EXPECT_EQ(parse_http_url("http://[::1]:9000", "e").host(), "::1");
  EXPECT_EQ(parse_http_url("http://h:1", "e").host(), "h");
  for (const char* bad : {"", "ftp://x", "http://", "http://a b", "http://x:0", "http://x:99999", "http://x:y",
                          "http://x:", "http://ex_ample!/", "http://x/#f", "http://a\nb", "http://[zz]"}) {
    EXPECT_NE(error_of(ErrorCode::kInvalidArgument, [&] { parse_http_url(bad, "endpoint_url"); }).find("endpoint_url"),
              std::string::npos)
        << bad;
  }
  const std::string secret = error_of(ErrorCode::kInvalidArgument, [] { parse_http_url("http://u:hush@h", "e"); });
  EXPECT_EQ(secret.find("hush"), std::string::npos) << secret;
}

TEST(HttpUrl, QueriesAreSortedAndEncoded) {
  EXPECT_EQ(encode_query({}), "");
  EXPECT_EQ(encode_query({{"uploads", ""}}), "uploads=");
  EXPECT_EQ(encode_query({{"b", "2 /"}, {"a", "\xc3\xa9"}, {"a", "1"}, {"A", "x"}}), "A=x&a=%C3%A9&a=1&b=2%20%2F");
}

TEST(TimeText, Dates) {
  const auto time = parse_iso_date("2015-08-30T12:36:00Z");
  ASSERT_TRUE(time);
  EXPECT_EQ(time->time_since_epoch().count(), 1440938160);
  EXPECT_EQ(to_amz_date(*time), "20150830T123600Z");
  EXPECT_EQ(to_iso_date(*time), "2015-08-30T12:36:00Z");
  for (const char* same :
       {"20150830T123600Z", "2015-08-30T12:36:00.123Z", "2015-08-30T13:36:00+01:00", "2015-08-30T05:06:00-0730",
        "2015-08-30 12:36:00", "2015-08-30T12:36:00.5+00:00", "2015-08-30T12:36:00UTC"}) {
    EXPECT_EQ(parse_iso_date(same), time) << same;
  }
  EXPECT_EQ(parse_http_date("Sun, 30 Aug 2015 12:36:00 GMT"), time);
  for (const char* bad : {"", "2015", "2015-13-01T00:00:00Z", "2015-02-30T00:00:00Z", "2015-08-30T25:00:00Z",
                          "2015-08-30T12:36", "2015-08-30T12:36:00X", "2015-08-30T12:36:00+1", "x"}) {
    EXPECT_EQ(parse_iso_date(bad), std::nullopt) << bad;
  }
  for (const char* bad : {"", "Sun, 30 Aug 2015", "30 Aug 2015 12:36:00 GMT", "Sun, 30 Abc 2015 12:36:00 GMT",
                          "Sun, 30 Aug 2015 12:36:00 CET"}) {
    EXPECT_EQ(parse_http_date(bad), std::nullopt) << bad;
  }
  for (std::int64_t seconds : {0LL, 951'782'400LL, 4'102'444'799LL}) {
    const UtcSeconds point{std::chrono::seconds(seconds)};
    EXPECT_EQ(parse_iso_date(to_amz_date(point)), point);
    EXPECT_EQ(parse_iso_date(to_iso_date(point)), point);
  }
}

TEST(Xml, WhatStoresSend) {
  const XmlElement root = parse_xml(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!-- a comment -->\n"
      "<s3:List xmlns:s3='http://x/' a=\"1>2\"><Empty/><Key>a&amp;b&#10;&#xe9;&lt;</Key>\n"
      "<Key>second</Key><![CDATA[raw <&>]]><Deep><Er>x</Er></Deep></s3:List>\n");
  EXPECT_EQ(root.name, "List");
  EXPECT_EQ(root.text, "\nraw <&>");
  EXPECT_EQ(root.child_text("Key"), "a&b\n\xc3\xa9<");
  EXPECT_EQ(root.child_text("Empty"), "");
  EXPECT_EQ(root.child("None"), nullptr);
  EXPECT_EQ(root.child("Deep")->child_text("Er"), "x");
  EXPECT_EQ(root.children.size(), 4U);
}

TEST(Xml, MalformedIsRefused) {
  std::string deep;
  for (int i = 0; i < 100; ++i) deep += "<a>";
  for (const std::string& bad : {""s, "text"s, "<a>"s, "<a></b>"s, "<a>&nbsp;</a>"s, "<a>&#0;</a>"s, "<a>&#xd800;</a>"s,
                                 "<a>&amp</a>"s, "<a b></a>"s, "<a b=c></a>"s, "<a/><b/>"s, "<!DOCTYPE a><a/>"s,
                                 "<a><!-- </a>"s, "<a"s, "<a b=\"1"s, "<"s, "</a>"s, "<a><![CDATA[x</a>"s, deep}) {
    EXPECT_NE(error_of(ErrorCode::kCorrupt, [&] { parse_xml(bad); }).find("malformed XML"), std::string::npos) << bad;
  }
}

// Whatever bytes arrive: an element or an Error, never anything else.
TEST(Xml, RandomBytesNeverCrash) {
  const std::string valid = "<?xml version='1'?><a b='c'><d>&amp;&#65;</d><![CDATA[x]]><!-- y --><e/></a>";
  int parsed = 0;
  for (std::uint32_t seed = 0; seed < 3000; ++seed) {
    std::mt19937 random(seed);
    std::string text = valid;
    for (auto i = random() % 4; i > 0; --i) text[random() % text.size()] = "<>&;/'=a"[random() % 8];
    text.resize(random() % (text.size() + 1) + 1);
    try {
      parse_xml(text);
      ++parsed;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
    }
  }
  EXPECT_GT(parsed, 5);
}

TEST(Xml, EscapedTextComesBack) {
  const std::string text = "a&b<c>\"d'\t\n\r\xc3\xa9";
  EXPECT_EQ(parse_xml("<k>" + xml_escape(text) + "</k>").text, text);
  error_of(ErrorCode::kInvalidArgument, [] { xml_escape("\x01"); });
}

bool same(const JsonValue& ours, const nlohmann::json& theirs) {
  switch (ours.kind) {
    case JsonValue::Kind::kNull:
      return theirs.is_null();
    case JsonValue::Kind::kBool:
      return theirs.is_boolean() && theirs.get<bool>() == ours.boolean;
    case JsonValue::Kind::kNumber:
      return theirs.is_number() && theirs.get<double>() == std::stod(ours.text);
    case JsonValue::Kind::kString:
      return theirs.is_string() && theirs.get<std::string>() == ours.text;
    case JsonValue::Kind::kArray:
      if (!theirs.is_array() || theirs.size() != ours.items.size()) return false;
      for (std::size_t i = 0; i < ours.items.size(); ++i) {
        if (!same(ours.items[i], theirs[i])) return false;
      }
      return true;
    case JsonValue::Kind::kObject:
      if (!theirs.is_object() || theirs.size() != ours.fields.size()) return false;
      for (const auto& [name, value] : ours.fields) {
        if (!theirs.contains(name) || !same(value, theirs[name])) return false;
      }
      return true;
  }
  return false;
}

nlohmann::json random_json(std::mt19937& random, int depth) {
  switch (random() % (depth > 3 ? 4 : 6)) {
    case 0:
      return nullptr;
    case 1:
      return random() % 2 == 0;
    case 2:
      return random() % 2 == 0 ? nlohmann::json(static_cast<int>(random()))
                               : nlohmann::json(1.5 * static_cast<double>(random()));
    case 3: {
      std::string text;
      for (auto i = random() % 6; i > 0; --i)
        text += std::array{"a", "\"", "\\", "\n", "\xc3\xa9", "\x01"}[random() % 6];
      return text;
    }
    case 4: {
      nlohmann::json list = nlohmann::json::array();
      for (auto i = random() % 4; i > 0; --i) list.push_back(random_json(random, depth + 1));
      return list;
    }
    default: {
      nlohmann::json object = nlohmann::json::object();
      for (auto i = random() % 4; i > 0; --i)
        object["k" + std::to_string(random() % 9)] = random_json(random, depth + 1);
      return object;
    }
  }
}

TEST(Json, ReadsWhatNlohmannWrites) {
  for (std::uint32_t seed = 0; seed < 500; ++seed) {
    std::mt19937 random(seed);
    const nlohmann::json document = random_json(random, 0);
    const std::string text = document.dump(seed % 2 == 0 ? -1 : 2, ' ', seed % 3 == 0);
    EXPECT_TRUE(same(parse_json(text), document)) << text;
  }
}

TEST(Json, FieldsAndQuotes) {
  const JsonValue value = parse_json(R"({"token": "a\u00e9\ud83d\ude00", "expires_in": 3599.7, "s": "12", "n": null})");
  EXPECT_EQ(value.field_text("token"), "a\xc3\xa9\xf0\x9f\x98\x80");
  EXPECT_EQ(value.field_integer("expires_in"), 3599);
  EXPECT_EQ(value.field_integer("s"), 12);
  EXPECT_EQ(value.field_integer("token"), std::nullopt);
  EXPECT_EQ(value.field_integer("none"), std::nullopt);
  EXPECT_EQ(value.field_text("n"), "");
  EXPECT_EQ(parse_json("3").field("x"), nullptr);
  EXPECT_EQ(json_quote("a\"\\\n\xc3\xa9"), "\"a\\\"\\\\\\u000a\xc3\xa9\"");
  EXPECT_EQ(parse_json(json_quote("a\"\\\n\x01")).text, "a\"\\\n\x01");
}

TEST(Json, MalformedIsRefusedWithoutShowingIt) {
  for (const std::string& bad : {""s, "{"s, "{\"a\"}"s, "{\"a\":}"s, "[1,]"s, "[1 2]"s, "tru"s, "\"a"s, "\"\\x\""s,
                                 "\"\\u12\""s, "1 2"s, "+1"s, "--1"s, "{a:1}"s, std::string(100, '[')}) {
    error_of(ErrorCode::kCorrupt, [&] { parse_json(bad); });
  }
  const std::string message = error_of(ErrorCode::kCorrupt, [] { parse_json(R"({"secret": "hush" x)"); });
  EXPECT_EQ(message.find("hush"), std::string::npos);
}

}  // namespace
}  // namespace torchsnapshot
