#include "integrity/checksum_sidecar.h"

#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "integrity/crc32c.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::string_view kName = ".torchsnapshot/checksums";

ChecksumTables random_tables(std::mt19937_64& random) {
  ChecksumTables tables;
  const std::uint64_t count = random() % 6;
  for (std::uint64_t i = 0; i < count; ++i) {
    std::string location = "data/";
    for (std::uint64_t k = random() % 20; k != 0; --k) location.push_back(static_cast<char>(1 + random() % 255));
    location += "x";
    if (location.find("..") != std::string::npos) continue;  // would have to be judged
    ChecksumTable table;
    table.block_bytes = 512ULL << random() % 22;
    table.object_bytes = random() % 10 * table.block_bytes + random() % table.block_bytes * (random() % 2);
    table.checksums.resize(checksum_block_count(table.object_bytes, table.block_bytes));
    for (auto& checksum : table.checksums) checksum = static_cast<std::uint32_t>(random());
    tables[location] = table;
  }
  return tables;
}

/// `body` with its CRC behind it.
std::string seal(std::string body) {
  const std::uint32_t crc = crc32c(0, std::as_bytes(std::span(body)));
  for (unsigned i = 0; i < 4; ++i) body.push_back(static_cast<char>(crc >> (8 * i) & 0xFF));
  return body;
}

std::string number(std::uint64_t value, unsigned size) {
  std::string text;
  for (unsigned i = 0; i < size; ++i) text.push_back(static_cast<char>(value >> (8 * i) & 0xFF));
  return text;
}

std::string header(std::uint32_t tables) {
  return "TSCRC32C" + number(1, 4) + number(tables, 4);
}

std::string table(std::uint64_t object_bytes, std::uint32_t log2, const std::string& location, std::size_t checksums) {
  return number(object_bytes, 8) + number(log2, 4) + number(location.size(), 4) + location +
         std::string(4 * checksums, 'c');
}

/// The message of the error, after a check of its code.
std::string refusal(const std::string& bytes, ErrorCode code = ErrorCode::kCorrupt) {
  try {
    static_cast<void>(parse_checksums(bytes, kName));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(kName), std::string::npos) << "no name: " << error.what();
    return error.what();
  }
  ADD_FAILURE() << "it was read";
  return "";
}

/// Reads what may be damaged: an error, or tables that are written as the same bytes. True if it was read.
bool error_or_equal(const std::string& bytes) {
  try {
    EXPECT_EQ(serialize_checksums(parse_checksums(bytes, kName)), bytes);
    return true;
  } catch (const Error& error) {
    EXPECT_TRUE(error.code() == ErrorCode::kCorrupt || error.code() == ErrorCode::kUnsupported) << error.what();
    return false;
  }
}

TEST(ChecksumSidecarTest, TheBytesAreAsDocumented) {
  const ChecksumTables tables{{"data/b", {513, 512, {0x01020304, 0xA0B0C0D0}}}, {"data/a", {0, 1 << 20, {}}}};
  const std::string expected = header(2) + table(0, 20, "data/a", 0) + number(513, 8) + number(9, 4) + number(6, 4) +
                               "data/b" + "\x04\x03\x02\x01\xD0\xC0\xB0\xA0";
  EXPECT_EQ(serialize_checksums(tables), seal(expected));
  EXPECT_EQ(parse_checksums(seal(expected), kName), tables);
  EXPECT_EQ(serialize_checksums({}).size(), 20U);
}

TEST(ChecksumSidecarTest, RoundTrips) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 2000; ++round) {
    const ChecksumTables tables = random_tables(random);
    const std::string bytes = serialize_checksums(tables);
    ASSERT_EQ(parse_checksums(bytes, kName), tables);
    ASSERT_EQ(serialize_checksums(tables), bytes);
  }
}

TEST(ChecksumSidecarTest, TruncatedAnywhere) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 30; ++round) {
    const std::string bytes = serialize_checksums(random_tables(random));
    const std::string body = bytes.substr(0, bytes.size() - 4);
    for (std::size_t size = 0; size < bytes.size(); ++size) {
      refusal(bytes.substr(0, size));
      if (size < body.size()) refusal(seal(body.substr(0, size)));  // with the right CRC too
    }
    refusal(bytes + "x");
    refusal(seal(body + "x"));
  }
}

TEST(ChecksumSidecarTest, Mutated) {
  std::mt19937_64 random(3);
  int read = 0;
  for (int round = 0; round < 10000; ++round) {
    const std::string bytes = serialize_checksums(random_tables(random));
    std::string body = bytes.substr(0, bytes.size() - 4);
    for (std::uint64_t i = 1 + random() % 3; i != 0; --i) {
      const std::size_t at = random() % body.size();
      switch (random() % 5) {
        case 0:
          body[at] = static_cast<char>(body[at] ^ (1 << random() % 8));
          break;
        case 1:
          body[at] = static_cast<char>(random());
          break;
        case 2:
          body.insert(at, 1, static_cast<char>(random()));
          break;
        case 3:
          if (body.size() > 1) body.erase(at, 1);
          break;
        default:
          body[at] = "\x00\xFF\x7F\x80"[random() % 4];
      }
    }
    const std::string unsealed = body + bytes.substr(bytes.size() - 4);
    ASSERT_EQ(error_or_equal(unsealed), unsealed == bytes);
    if (error_or_equal(seal(body))) ++read;
  }
  EXPECT_GT(read, 1000) << "mutated checksums and locations are no errors of form";
  EXPECT_LT(read, 9000);
}

TEST(ChecksumSidecarTest, HostileNumbersWithTheRightChecksum) {
  refusal(seal(header(0xFFFFFFFF)));
  refusal(seal(header(1)));
  refusal(seal(header(0) + table(0, 9, "a", 0)));
  refusal(seal(header(1) + table(1ULL << 40, 9, "a", 3)));
  refusal(seal(header(1) + table((1ULL << 63) - 1, 9, "a", 3)));
  refusal(seal(header(1) + table(1ULL << 63, 30, "a", 3)));
  refusal(seal(header(1) + table(~0ULL, 30, "a", 3)));
  refusal(seal(header(1) + table(512, 9, "a", 2)));
  for (const std::uint32_t log2 : {0U, 8U, 31U, 32U, 63U, 64U, 0xFFFFFFFFU}) {
    EXPECT_NE(refusal(seal(header(1) + table(0, log2, "a", 0))).find("block size"), std::string::npos);
  }
  refusal(seal(header(1) + number(0, 8) + number(9, 4) + number(0xFFFFFFFF, 4) + "a"));
  for (const std::string location : {"", "/a", "../a", "a/../../b", ".", "a/.."}) {
    refusal(seal(header(1) + table(0, 9, location, 0)));
  }
  refusal(seal(header(1) + table(0, 9, std::string("a\0b", 3), 0)));
  EXPECT_NE(refusal(seal(header(2) + table(0, 9, "a", 0) + table(0, 9, "a", 0))).find("ascend"), std::string::npos);
  refusal(seal(header(2) + table(0, 9, "b", 0) + table(0, 9, "a", 0)));
  EXPECT_EQ(parse_checksums(seal(header(2) + table(0, 9, "a", 0) + table(1024, 9, "b", 2)), kName).size(), 2U);
  refusal(seal("TSCRC32C" + number(2, 4) + number(0, 4)), ErrorCode::kUnsupported);
  refusal(seal("TSCRC32D" + number(1, 4) + number(0, 4)));
}

TEST(ChecksumSidecarTest, RefusesToWriteWhatItWouldNotRead) {
  const auto code_of = [](const std::string& location, const ChecksumTable& value) {
    try {
      static_cast<void>(serialize_checksums({{location, value}}));
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kCancelled;
  };
  EXPECT_EQ(code_of("a", {512, 512, {1}}), ErrorCode::kCancelled);
  EXPECT_EQ(code_of("a", {513, 512, {1}}), ErrorCode::kInternal);
  EXPECT_EQ(code_of("a", {512, 512, {1, 2}}), ErrorCode::kInternal);
  EXPECT_EQ(code_of("a", {512, 513, {1}}), ErrorCode::kInternal);
  EXPECT_EQ(code_of("a", {512, 0, {1}}), ErrorCode::kInternal);
  EXPECT_EQ(code_of("a", {~0ULL, 1 << 30, {1}}), ErrorCode::kInternal);
  EXPECT_EQ(code_of("../a", {512, 512, {1}}), ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace torchsnapshot
