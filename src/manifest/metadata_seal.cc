#include "manifest/metadata_seal.h"

#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <utility>

#include "core/take_id.h"
#include "core/text.h"
#include "integrity/crc32c.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::string_view kMark = "+crc32c.";
constexpr std::string_view kMarkAfterIndex = ".crc32c.";
constexpr std::string_view kIndexMark = "+index.";
constexpr std::size_t kDigits = 8;
constexpr std::string_view kBlank = "00000000";
/// Metadata of ours begins so; the version follows.
constexpr std::string_view kBegin = "{\n  \"version\": \"";

std::string hex(std::uint32_t value) {
  std::array<char, kDigits + 1> text{};
  std::snprintf(text.data(), text.size(), "%08x", value);
  return text.data();
}

/// Where the parts of the seal are, if the text begins as sealed metadata does.
struct SealPlace {
  std::size_t digits = 0;
  std::string_view index_take;
  std::size_t size = 0;  ///< of what the seal adds to the version
};
std::optional<SealPlace> find_seal(std::string_view text) {
  if (!text.starts_with(kBegin)) return std::nullopt;
  const std::size_t end = text.find('"', kBegin.size());
  if (end == std::string_view::npos || end < kBegin.size() + kMark.size() + kDigits) return std::nullopt;
  SealPlace place{end - kDigits, {}, kMark.size() + kDigits};
  const std::size_t mark = place.digits - kMark.size();
  if (text.substr(mark, kMark.size()) == kMark) return place;
  const std::size_t more = kIndexMark.size() + kTakeIdDigits;
  if (text.substr(mark, kMark.size()) != kMarkAfterIndex || mark < kBegin.size() + more) return std::nullopt;
  place.index_take = text.substr(mark - kTakeIdDigits, kTakeIdDigits);
  place.size += more;
  if (!is_take_id(place.index_take) || text.substr(mark - more, kIndexMark.size()) != kIndexMark) return std::nullopt;
  return place;
}

/// The CRC of the text with blank digits.
std::uint32_t sealed_crc(std::string_view text, std::size_t digits) {
  return crc32c(crc32c(crc32c(0, text.substr(0, digits)), kBlank), text.substr(digits + kDigits));
}

[[noreturn]] void fail(const std::string& why) {
  throw Error(
      ErrorCode::kCorrupt,
      "the metadata " + why +
          ": it has changed since it was written. Restore it from a copy, or use another snapshot; with checksums "
          "turned off it is read as it is");
}

/// True when a version may have had a seal that was damaged. (The original's versions have no local part.)
bool has_traces(std::string_view version) {
  return version.find('+') != std::string_view::npos || version.find(kMark.substr(1)) != std::string_view::npos;
}

/// True when an object of the manifest lies where takes of ours, and nobody else's, put them.
bool has_our_objects(const Manifest& manifest) {
  constexpr std::string_view kData = "data/";
  for (const auto& [path, entry] : manifest) {
    for (const std::string_view location : entry_locations(entry)) {
      if (location.starts_with(kData) && location.find('/', kData.size()) == kData.size() + kTakeIdDigits) return true;
    }
  }
  return false;
}

}  // namespace

std::string write_sealed_metadata(const SnapshotMetadata& metadata, std::string_view index_take) {
  std::string text = write_metadata(metadata);
  std::string seal(kMark);
  if (!index_take.empty()) seal = std::string(kIndexMark).append(index_take).append(kMarkAfterIndex);
  text.insert(kBegin.size() + metadata.version.size(), seal.append(kBlank));
  const auto place = find_seal(text);
  if (!place) throw Error(ErrorCode::kInternal, "the version " + quote_text(metadata.version) + " can't be sealed");
  text.replace(place->digits, kDigits, hex(sealed_crc(text, place->digits)));
  return text;
}

std::optional<MetadataSeal> seal_of(std::string_view head) {
  const auto place = find_seal(head);
  if (!place) return std::nullopt;
  MetadataSeal seal{0, std::string(place->index_take)};
  const std::string_view digits = head.substr(place->digits, kDigits);
  const auto [stop, status] = std::from_chars(digits.data(), digits.data() + digits.size(), seal.crc, 16);
  if (status != std::errc() || stop != digits.data() + digits.size()) return std::nullopt;
  return seal;
}

SnapshotMetadata parse_sealed_metadata(std::string_view text, bool verify) {
  const auto place = find_seal(text);
  if (verify && place) {
    const std::string expected(text.substr(place->digits, kDigits));
    const std::string found = hex(sealed_crc(text, place->digits));
    if (expected != found) fail("has the CRC-32C 0x" + found + ", expected 0x" + expected);
  }
  SnapshotMetadata metadata = parse_metadata(text);
  if (place) {
    metadata.version.resize(metadata.version.size() - place->size);
  } else if (verify && (has_traces(metadata.version) || has_our_objects(metadata.manifest))) {
    fail("has lost its checksum");
  }
  return metadata;
}

}  // namespace torchsnapshot
