// Indexes of metadata, and packed entries: any bytes are an Error, or entries that are packed and unpacked again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "integrity/crc32c.h"
#include "manifest/compact_part.h"
#include "manifest/manifest_index.h"
#include "plan/world_parts.h"
#include "torchsnapshot/error.h"

using namespace torchsnapshot;

namespace {

const std::string kTake(32, '0');

void put_crc(std::string& bytes, std::size_t at, std::string_view of) {
  const std::uint32_t crc = crc32c(0, std::as_bytes(std::span(of)));
  for (std::size_t i = 0; i < 4; ++i) bytes[at + i] = static_cast<char>(crc >> (8 * i));
}

void packed(std::string_view bytes) {
  Manifest entries;
  decode_entries(parse_part(bytes), kTake, entries);
  std::vector<const Manifest::Item*> items;
  for (const Manifest::Item& item : entries) items.push_back(&item);
  Manifest again;
  try {
    decode_entries(encode_entries(items, kTake), kTake, again);
  } catch (const Error&) {
    std::abort();
  }
  if (!(again == entries)) std::abort();
}

/// Its own checksums are made to fit, or nothing behind them would ever be reached.
void index(std::string bytes) {
  if (bytes.size() >= 64) {
    std::uint64_t begin = 0;
    for (std::size_t i = 8; i-- > 0;) begin = (begin << 8U) | static_cast<unsigned char>(bytes[40 + i]);
    if (begin <= bytes.size()) put_crc(bytes, 56, std::string_view(bytes).substr(begin));
    put_crc(bytes, 60, std::string_view(bytes).substr(0, 60));
  }
  const ManifestIndex found([&](std::uint64_t at, std::uint64_t size) { return bytes.substr(at, size); }, bytes.size(),
                            kTake);
  Manifest entries;
  found.select("m", true, entries);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  for (const int what : {0, 1, 2, 3}) {
    if (data[0] % 4 != what) continue;
    try {
      if (what == 0) packed(bytes);
      if (what == 1) index(std::string(bytes));
      if (what == 2) static_cast<void>(parse_call(bytes));
      if (what == 3) static_cast<void>(parse_leaves(bytes));
    } catch (const Error&) {
      continue;
    }
  }
  return 0;
}
