#include "integrity/checksum_sidecar.h"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/little_endian.h"
#include "core/path_codec.h"
#include "core/text.h"
#include "integrity/crc32c.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::string_view kMagic = "TSCRC32C";
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kHeaderBytes = 16;
constexpr std::size_t kTableBytes = 16;  ///< without location and checksums
constexpr std::size_t kCrcBytes = 4;
constexpr std::uint64_t kMaxObjectBytes = std::numeric_limits<std::int64_t>::max();

/// A table as it lies in the sidecar.
struct RawTable {
  std::uint64_t object_bytes = 0;
  std::uint64_t block_bytes = 0;
  std::string_view location;
  std::string_view checksums;
};

[[noreturn]] void malformed(std::string_view name, const std::string& why) {
  throw Error(ErrorCode::kCorrupt, "the checksums in " + quote_text(name) + " are malformed: " + why +
                                       "; they were damaged after they were written: restore the file from a copy, or "
                                       "turn verification off to read the snapshot without them");
}

/// The table at `at`, which moves behind it; `bytes` ends where the tables do.
RawTable next_table(std::string_view bytes, std::size_t& at, std::string_view name) {
  const auto where = [&, begin = at] { return " (table at byte " + std::to_string(begin) + ")"; };
  if (bytes.size() - at < kTableBytes) malformed(name, "they end inside a table" + where());
  RawTable table;
  table.object_bytes = get_little_endian<std::uint64_t>(bytes, at);
  const auto block_log2 = get_little_endian<std::uint32_t>(bytes, at + 8);
  const auto location_bytes = get_little_endian<std::uint32_t>(bytes, at + 12);
  if (table.object_bytes > kMaxObjectBytes) malformed(name, "an object is too large" + where());
  if (block_log2 > 30 || !is_checksum_block_size(std::uint64_t{1} << block_log2)) {
    malformed(name, "a block size is not allowed" + where());
  }
  table.block_bytes = std::uint64_t{1} << block_log2;
  at += kTableBytes;
  if (bytes.size() - at < location_bytes) malformed(name, "they end inside a location" + where());
  table.location = bytes.substr(at, location_bytes);
  at += location_bytes;
  const std::uint64_t blocks = checksum_block_count(table.object_bytes, table.block_bytes);
  if ((bytes.size() - at) / 4 < blocks) malformed(name, "they end inside the checksums of a table" + where());
  table.checksums = bytes.substr(at, blocks * 4);
  at += table.checksums.size();
  return table;
}

}  // namespace

std::string serialize_checksums(const ChecksumTables& tables) {
  std::size_t size = kHeaderBytes + kCrcBytes;
  for (const auto& [location, table] : tables) {
    check_location(location);
    if (table.object_bytes > kMaxObjectBytes || !is_checksum_block_size(table.block_bytes) ||
        table.checksums.size() != checksum_block_count(table.object_bytes, table.block_bytes)) {
      throw Error(ErrorCode::kInternal, "the checksum table of " + quote_text(location) +
                                            " contradicts itself: " + std::to_string(table.checksums.size()) +
                                            " blocks of " + std::to_string(table.block_bytes) +
                                            " bytes for an object of " + std::to_string(table.object_bytes));
    }
    size += kTableBytes + location.size() + 4 * table.checksums.size();
  }
  if (tables.size() > std::numeric_limits<std::uint32_t>::max()) {
    throw Error(ErrorCode::kInternal, "too many checksum tables for one sidecar");
  }
  std::string out;
  out.reserve(size);
  out += kMagic;
  put_little_endian(out, kVersion);
  put_little_endian(out, static_cast<std::uint32_t>(tables.size()));
  for (const auto& [location, table] : tables) {
    put_little_endian(out, table.object_bytes);
    put_little_endian(out, static_cast<std::uint32_t>(std::countr_zero(table.block_bytes)));
    put_little_endian(out, static_cast<std::uint32_t>(location.size()));
    out += location;
    for (const std::uint32_t checksum : table.checksums) put_little_endian(out, checksum);
  }
  put_little_endian(out, crc32c(0, out));
  return out;
}

ChecksumTables parse_checksums(std::string_view bytes, std::string_view name) {
  if (bytes.substr(0, kMagic.size()) != kMagic) malformed(name, "they don't begin with " + std::string(kMagic));
  if (bytes.size() < kHeaderBytes + kCrcBytes) malformed(name, "they end inside the header");
  const std::string_view body = bytes.substr(0, bytes.size() - kCrcBytes);
  if (crc32c(0, body) != get_little_endian<std::uint32_t>(bytes, body.size()))
    malformed(name, "their own checksum is wrong");
  if (const auto version = get_little_endian<std::uint32_t>(body, 8); version != kVersion) {
    throw Error(ErrorCode::kUnsupported, "the checksums in " + quote_text(name) + " have the format version " +
                                             std::to_string(version) +
                                             ", which this version of torchsnapshot doesn't know: use a newer one, or "
                                             "turn verification off");
  }
  const auto count = get_little_endian<std::uint32_t>(body, 12);
  std::size_t at = kHeaderBytes;
  std::string_view previous;
  for (std::uint32_t i = 0; i < count; ++i) {
    const RawTable table = next_table(body, at, name);
    try {
      check_location(table.location);
    } catch (const Error& error) {
      throw error.with_context("the checksums in " + quote_text(name));
    }
    if (i != 0 && table.location <= previous)
      malformed(name, "the locations don't ascend at " + quote_text(table.location));
    previous = table.location;
  }
  if (at != body.size()) malformed(name, std::to_string(body.size() - at) + " bytes follow the last table");

  ChecksumTables tables;
  at = kHeaderBytes;
  for (std::uint32_t i = 0; i < count; ++i) {
    const RawTable raw = next_table(body, at, name);
    ChecksumTable table{raw.object_bytes, raw.block_bytes, {}};
    table.checksums.reserve(raw.checksums.size() / 4);
    for (std::size_t k = 0; k < raw.checksums.size(); k += 4) {
      table.checksums.push_back(get_little_endian<std::uint32_t>(raw.checksums, k));
    }
    tables.emplace_hint(tables.end(), raw.location, std::move(table));
  }
  return tables;
}

}  // namespace torchsnapshot
