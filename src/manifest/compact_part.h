// The entries of one rank in few bytes, for the way to rank 0.
//
// What ranks of one kind have alike is apart from what they have for themselves, so that it travels once: ranks that
// hold the same tensors in pieces of the same shapes have the same `form`, byte for byte, whatever their number and
// wherever their pieces lie. The take's id is in none of the three, so a plan that is taken again has the same bytes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "torchsnapshot/manifest.h"

namespace torchsnapshot {

struct CompactPart {
  std::string form;    ///< paths, types, dtypes, shapes, where in the rank's objects the bytes are
  std::string places;  ///< where the pieces lie in their tensors
  std::string values;  ///< of the primitives
  friend bool operator==(const CompactPart&, const CompactPart&) = default;
};

/// `part`: the manifest of the plan of one rank, each path with "RANK/" in front. Pure, as decode_part.
CompactPart encode_part(const Manifest& part, std::int64_t rank, std::string_view take_id);

/// The inverse: appends to `out`. Throws Error(kCorrupt) for bytes that encode_part does not write (of those, some
/// are taken: what they say is for validate.h) and for a path that is there already.
void decode_part(const CompactPart& part, std::int64_t rank, std::string_view take_id, Manifest& out);

/// The same for any entries, with the ranks in their paths.
using ItemPointers = std::span<const Manifest::Item* const>;
CompactPart encode_entries(ItemPointers items, std::string_view take_id);
void decode_entries(const CompactPart& part, std::string_view take_id, Manifest& out);

/// The three one behind the other, and back.
std::string serialize(const CompactPart& part);
CompactPart parse_part(std::string_view bytes);

}  // namespace torchsnapshot
