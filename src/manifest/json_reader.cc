#include "manifest/readers.h"

#include "manifest/json_cursor.h"
#include "manifest/metadata_reader.h"

namespace torchsnapshot {

SnapshotMetadata read_json_metadata(std::string_view text) {
  JsonCursor cursor(text);
  return MetadataReader<JsonCursor>(cursor).read();
}

}  // namespace torchsnapshot
