#include "plan/share_plan.h"

#include <algorithm>
#include <map>
#include <utility>

#include "plan/message.h"
#include "plan/ranges.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

/// What two lists of ranges have in common.
std::vector<ByteRange> intersection(const std::vector<ByteRange>& a, const std::vector<ByteRange>& b) {
  std::vector<ByteRange> common;
  for (std::size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    const ByteRange both{std::max(a[i].begin, b[j].begin), std::min(a[i].end, b[j].end)};
    if (both.begin < both.end) common.push_back(both);
    if (a[i].end < b[j].end) {
      ++i;
    } else {
      ++j;
    }
  }
  return common;
}

/// Extended to whole checksum blocks, near ones joined.
std::vector<ByteRange> read_ranges(const ObjectWants& object) {
  const std::uint64_t step = std::max<std::uint64_t>(1, object.block_bytes);
  std::vector<ByteRange> ranges;
  for (const ByteRange range : object.ranges) {
    append_joined(ranges, widened(range, step, object.object_bytes), kMaxGapBytes);
  }
  return ranges;
}

/// Fills parcels from front to back.
class Packer {
 public:
  void add(const SharePart& part) {
    if (part.range.size() >= kMinOwnParcel) {
      parcels_.push_back({.reader = 0, .bytes = part.range.size(), .parts = {part}});
      return;
    }
    if (open_.bytes + part.range.size() > kParcelBytes) close();
    open_.bytes += part.range.size();
    open_.parts.push_back(part);
  }
  std::vector<Parcel> finish() {
    close();
    return std::move(parcels_);
  }

 private:
  void close() {
    if (!open_.parts.empty()) parcels_.push_back(std::exchange(open_, {}));
  }

  std::vector<Parcel> parcels_;
  Parcel open_;  ///< of small parts
};

bool is_within(ByteRange range, const std::vector<ByteRange>& ranges) {
  const auto next = std::upper_bound(ranges.begin(), ranges.end(), range.begin,
                                     [](std::uint64_t begin, ByteRange other) { return begin < other.begin; });
  return next != ranges.begin() && range.end <= std::prev(next)->end;
}

}  // namespace

std::string serialize(const ReadWants& wants) {
  MessageWriter writer;
  for (const ObjectWants& object : wants) {
    writer.text(object.location);
    writer.number(object.object_bytes);
    writer.number(object.block_bytes);
    writer.number<std::uint64_t>(object.ranges.size());
    for (const ByteRange range : object.ranges) {
      writer.number(range.begin);
      writer.number(range.end);
    }
  }
  return writer.take();
}

ReadWants parse_wants(std::string_view bytes) {
  MessageReader reader(bytes, Error(ErrorCode::kInternal, "what a rank wants to read is cut off"));
  ReadWants wants;
  while (!reader.at_end()) {
    ObjectWants object;
    object.location = reader.text();
    object.object_bytes = reader.number();
    object.block_bytes = reader.number();
    for (std::uint64_t count = reader.number(); count > 0; --count) {
      const std::uint64_t begin = reader.number();
      const std::uint64_t end = reader.number();
      if (begin >= end || end > object.object_bytes || (!object.ranges.empty() && begin < object.ranges.back().end)) {
        throw Error(ErrorCode::kInternal, "what a rank wants of '" + object.location + "' is out of order");
      }
      object.ranges.push_back({begin, end});
    }
    if (!wants.empty() && object.location <= wants.back().location) {
      throw Error(ErrorCode::kInternal, "the objects that a rank wants to read are out of order");
    }
    wants.push_back(std::move(object));
  }
  return wants;
}

Digest digest_of(const ReadWants& wants) {
  Digester digester;
  for (const ObjectWants& object : wants) {
    digester.add(std::string_view(object.location));
    digester.add(object.object_bytes);
    digester.add(object.block_bytes);
    digester.add(static_cast<std::uint64_t>(object.ranges.size()));
    for (const ByteRange range : object.ranges) {
      digester.add(range.begin);
      digester.add(range.end);
    }
  }
  return digester.digest();
}

std::vector<ByteRange> joined(std::vector<ByteRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](ByteRange a, ByteRange b) { return a.begin < b.begin; });
  std::vector<ByteRange> all;
  for (const ByteRange range : ranges) {
    if (range.begin < range.end) append_joined(all, range, 0);
  }
  return all;
}

ReadWants common_wants(const std::vector<ReadWants>& of_ranks) {
  if (of_ranks.empty()) return {};
  ReadWants common = of_ranks.front();
  for (std::size_t rank = 1; rank < of_ranks.size(); ++rank) {
    std::map<std::string_view, const ObjectWants*> theirs;
    for (const ObjectWants& object : of_ranks[rank]) theirs.emplace(object.location, &object);
    std::erase_if(common, [&theirs](ObjectWants& object) {
      const auto found = theirs.find(object.location);
      if (found == theirs.end() || found->second->object_bytes != object.object_bytes ||
          found->second->block_bytes != object.block_bytes) {
        return true;
      }
      object.ranges = intersection(object.ranges, found->second->ranges);
      return object.ranges.empty();
    });
  }
  return common;
}

std::vector<ShareRound> divide_reads(const ReadWants& common, std::int64_t ranks, std::uint64_t round_bytes) {
  Packer packer;
  for (std::size_t i = 0; i < common.size(); ++i) {
    for (const ByteRange range : read_ranges(common[i])) {
      std::uint64_t end = 0;
      for (std::uint64_t begin = range.begin; begin < range.end; begin = end) {
        end = std::min(range.end, (begin / kParcelBytes + 1) * kParcelBytes);
        packer.add({.object = i, .range = {begin, end}});
      }
    }
  }
  std::vector<Parcel> parcels = packer.finish();
  std::uint64_t total = 0;
  for (const Parcel& parcel : parcels) total += parcel.bytes;
  // A parcel is read by the rank in whose share of the bytes its middle lies.
  std::vector<std::vector<Parcel>> by_reader(static_cast<std::size_t>(ranks));
  const double share = static_cast<double>(total) / static_cast<double>(ranks);
  std::uint64_t before = 0;
  for (Parcel& parcel : parcels) {
    const double middle = static_cast<double>(before) + static_cast<double>(parcel.bytes) / 2;
    parcel.reader = std::min(static_cast<std::int64_t>(middle / share), ranks - 1);
    before += parcel.bytes;
    by_reader[static_cast<std::size_t>(parcel.reader)].push_back(std::move(parcel));
  }
  std::vector<ShareRound> rounds;
  std::uint64_t filled = 0;
  for (std::size_t turn = 0, left = parcels.size(); left > 0; ++turn) {
    for (std::vector<Parcel>& own : by_reader) {
      if (turn >= own.size()) continue;
      if (rounds.empty() || filled + own[turn].bytes > round_bytes) {
        rounds.emplace_back();
        filled = 0;
      }
      filled += own[turn].bytes;
      rounds.back().push_back(std::move(own[turn]));
      --left;
    }
  }
  return rounds;
}

std::vector<ObjectRead> take_shared(ReadPlan& plan, const ReadWants& common) {
  std::map<std::string_view, ObjectRead*> objects;
  for (ObjectRead& object : plan.objects) objects.emplace(object.location, &object);
  std::vector<ObjectRead> shared;
  shared.reserve(common.size());
  for (const ObjectWants& wanted : common) {
    ObjectRead taken{.location = wanted.location, .tensors = {}};
    if (const auto found = objects.find(wanted.location); found != objects.end()) {
      std::vector<TensorRead> rest;
      for (TensorRead& read : found->second->tensors) {
        (is_within(read.range, wanted.ranges) ? taken.tensors : rest).push_back(std::move(read));
      }
      found->second->tensors = std::move(rest);
    }
    shared.push_back(std::move(taken));
  }
  std::erase_if(plan.objects, [](const ObjectRead& object) { return object.tensors.empty(); });
  return shared;
}

}  // namespace torchsnapshot
