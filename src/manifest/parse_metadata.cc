#include "core/text.h"
#include "manifest/readers.h"
#include "manifest/validate.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

SnapshotMetadata read_metadata(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) throw Error(ErrorCode::kCorrupt, "it is empty");
  if (text[first] == '{') return read_json_metadata(text);
  // What yaml-cpp would first read to the end.
  if (text[first] == '[') throw Error(ErrorCode::kCorrupt, "it is a list, and should be a mapping");
  return read_yaml_metadata(text);
}

}  // namespace

SnapshotMetadata parse_metadata(std::string_view text) {
  try {
    SnapshotMetadata metadata = read_metadata(text);
    validate(metadata);
    return metadata;
  } catch (const Error& error) {
    throw error.with_context("snapshot metadata");
  }
}

}  // namespace torchsnapshot
