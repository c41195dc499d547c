// URLs, locations, paths and globs: any bytes are an Error, or what comes out keeps its promises.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "core/path_codec.h"
#include "pipeline/checksum_store.h"
#include "plan/write_plan.h"
#include "storage/location.h"
#include "torchsnapshot/error.h"

using namespace torchsnapshot;

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const std::string normal = normalize_location(text);
    require(normalize_location(normal) == normal);
    require(!normal.empty() && normal.front() != '/' && normal != ".." && !normal.starts_with("../") &&
            normal.find("/../") == std::string::npos);
  } catch (const Error&) {
  }
  try {
    const StorageUrl url = parse_storage_url(text);
    require(!url.scheme.empty() && !url.rest.empty());
  } catch (const Error&) {
  }
  require(decode_component(encode_component(text)) == text);
  static_cast<void>(checksum_location_of(text));
  // A glob may take the product of the two lengths, as fnmatch does: patterns are the user's own.
  const std::string_view some = text.substr(0, 2000);
  const std::size_t middle = some.size() / 2;
  static_cast<void>(glob_match(some.substr(0, middle), some.substr(middle)));
  return 0;
}
