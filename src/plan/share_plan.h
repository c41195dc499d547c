// Which bytes all ranks of a restore need, and which of them reads what for the others. Pure: every rank computes the
// same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "plan/digest.h"
#include "plan/read_plan.h"
#include "torchsnapshot/bytes.h"

namespace torchsnapshot {

/// What a rank needs of one object, and would take from another rank.
struct ObjectWants {
  std::string location;
  std::uint64_t object_bytes = 0;
  std::uint64_t block_bytes = 0;  ///< of its checksum blocks; 0: nothing is verified
  std::vector<ByteRange> ranges;  ///< ascending, apart from each other, none empty, within the object
  friend bool operator==(const ObjectWants&, const ObjectWants&) = default;
};
/// Ascending by location, each once.
using ReadWants = std::vector<ObjectWants>;

std::string serialize(const ReadWants& wants);
/// Throws Error(kInternal) for bytes that serialize() did not make.
ReadWants parse_wants(std::string_view bytes);
Digest digest_of(const ReadWants& wants);
/// Sorts the ranges and joins those that touch.
std::vector<ByteRange> joined(std::vector<ByteRange> ranges);
/// What every one of these ranks wants. An object that they describe differently is none of it.
ReadWants common_wants(const std::vector<ReadWants>& of_ranks);

/// What goes round in one piece is at most this long; a part of an object of at least kMinOwnParcel bytes goes alone.
inline constexpr std::uint64_t kParcelBytes = 4ULL << 20;
inline constexpr std::uint64_t kMinOwnParcel = 1ULL << 20;

/// Bytes of the wanted object number `object`: whole checksum blocks, and with them what lies between.
struct SharePart {
  std::size_t object = 0;
  ByteRange range;
  friend bool operator==(const SharePart&, const SharePart&) = default;
};
/// What rank `reader` reads, and hands round in one piece, part after part.
struct Parcel {
  std::int64_t reader = 0;
  std::uint64_t bytes = 0;
  std::vector<SharePart> parts;
};
/// Parcels that go round together.
using ShareRound = std::vector<Parcel>;

/// Divides what all want over `ranks` readers, so that each reads about as much (to kParcelBytes) and that in order,
/// and into rounds of at most `round_bytes`, or one parcel. Objects have checksum blocks of at most kParcelBytes. The
/// readers take turns, so that all read at the same time.
std::vector<ShareRound> divide_reads(const ReadWants& common, std::int64_t ranks, std::uint64_t round_bytes);

/// Takes the reads that lie within `common` out of `plan`, and returns them: item i is of the object i of `common`.
std::vector<ObjectRead> take_shared(ReadPlan& plan, const ReadWants& common);

}  // namespace torchsnapshot
