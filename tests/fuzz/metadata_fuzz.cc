// Metadata, JSON or YAML: any bytes are an Error or metadata that survives being written and read again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "manifest/metadata_seal.h"
#include "manifest/rank_view.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/manifest.h"

using namespace torchsnapshot;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  SnapshotMetadata metadata;
  try {
    metadata = parse_sealed_metadata(text, false);
    const RankView view(metadata, 0);
  } catch (const Error&) {
    return 0;
  }
  const SnapshotMetadata again = parse_metadata(write_metadata(metadata));
  if (!(again.manifest == metadata.manifest) || again.world_size != metadata.world_size) std::abort();
  return 0;
}
