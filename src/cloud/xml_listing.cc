#include "cloud/xml_listing.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "net/encoding.h"

namespace torchsnapshot {
namespace {

std::optional<std::uint64_t> number_of(std::string_view digits) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return number;
}

bool goes_on(const XmlElement& page) {
  return page.child_text("IsTruncated") == "true";
}

/// A key as the page writes it: a store may heed the wish for encoding-type or not.
std::string key_of(const XmlElement& page, std::string_view text) {
  std::string key(text);
  if (page.child_text("EncodingType") != "url") return key;
  std::replace(key.begin(), key.end(), '+', ' ');  // AWS writes spaces so
  return percent_decode(key).value_or(key);
}

}  // namespace

ObjectPage parse_object_page(const XmlElement& page) {
  ObjectPage result{
      .objects = {}, .goes_on = goes_on(page), .next = std::string(page.child_text("NextContinuationToken"))};
  for (const XmlElement& entry : page.children) {
    if (entry.name != "Contents") continue;
    result.objects.push_back({.key = key_of(page, entry.child_text("Key")),
                              .size = number_of(entry.child_text("Size")),
                              .modified = parse_iso_date(entry.child_text("LastModified"))});
  }
  return result;
}

UploadPage parse_upload_page(const XmlElement& page) {
  UploadPage result{.uploads = {},
                    .goes_on = goes_on(page),
                    .next_key = key_of(page, page.child_text("NextKeyMarker")),
                    .next_id = std::string(page.child_text("NextUploadIdMarker"))};
  for (const XmlElement& entry : page.children) {
    if (entry.name != "Upload") continue;
    result.uploads.push_back({.key = key_of(page, entry.child_text("Key")),
                              .id = std::string(entry.child_text("UploadId")),
                              .begun = parse_iso_date(entry.child_text("Initiated"))});
  }
  return result;
}

PartPage parse_part_page(const XmlElement& page) {
  PartPage result{.facts = {}, .goes_on = goes_on(page), .next = std::string(page.child_text("NextPartNumberMarker"))};
  for (const XmlElement& entry : page.children) {
    if (entry.name != "Part") continue;
    result.facts.bytes += number_of(entry.child_text("Size")).value_or(0);
    result.facts.newest = std::max(result.facts.newest, parse_iso_date(entry.child_text("LastModified")));
  }
  return result;
}

}  // namespace torchsnapshot
