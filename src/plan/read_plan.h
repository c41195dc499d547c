// From manifest entries and the memory they go to, to byte ranges of objects. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "torchsnapshot/bytes.h"
#include "torchsnapshot/manifest.h"
#include "torchsnapshot/tensor.h"

namespace torchsnapshot {

/// Bytes of one object that go into a tensor: the stored piece is dense with shape `piece_shape`; of its bytes,
/// those from `piece_begin` on are at `range` of the object; those in `region` go to `view`. For a view on a
/// device the region is always one unbroken run of bytes.
struct TensorRead {
  std::string path;  ///< of the entry, for messages
  ByteRange range;
  std::uint64_t piece_begin = 0;
  Dims piece_shape;
  Box region;
  TensorView view;
};

/// Bytes that go to a face as they are. No range: the whole object.
struct BlobRead {
  std::string path;  ///< of the entry, for messages
  std::string location;
  std::optional<ByteRange> range;
};

/// All that is read from one object, in ascending order of range.begin.
struct ObjectRead {
  std::string location;
  std::vector<TensorRead> tensors;
  std::uint64_t min_size = 0;               ///< the manifest's byte ranges reach this far
  std::optional<std::uint64_t> exact_size;  ///< set by an entry that is the whole object
};

struct ReadPlan {
  std::vector<ObjectRead> objects;
};

/// Collects what is to be read. add() may be called in any order; build() sorts by object and offset.
class ReadPlanner {
 public:
  /// Plans to fill `target` (a box of the global tensor, and its memory) from the stored pieces. Throws Error(kCorrupt)
  /// when a piece's byte range does not have the size of its shape, or an encoded piece is met,
  /// or the pieces do not cover the box.
  void add(const std::string& path, const std::vector<ShardEntry>& pieces, const Box& box, const TensorView& target);
  /// The plan; leaves the planner empty.
  ReadPlan build();

 private:
  std::map<std::string, ObjectRead> objects_;
};

/// True when the boxes (none empty of it outside `box`) cover every element of `box`; overlaps are allowed.
bool covers(const std::vector<Box>& boxes, const Box& box);

}  // namespace torchsnapshot
