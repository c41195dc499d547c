// From manifest entries and the memory they go to, to byte ranges of objects. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "torchsnapshot/bytes.h"
#include "torchsnapshot/manifest.h"
#include "torchsnapshot/tensor.h"

namespace torchsnapshot {

/// What a message says of a bfloat16 tensor that is 2 bytes short.
inline constexpr std::string_view kOddBFloat16 =
    "; older versions of torchsnapshot did not store the last element of a bfloat16 tensor with an odd number of "
    "elements. "
    "It is lost; other entries are not affected";

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
  bool of_whole = false;  ///< all of the tensor is wanted: so others may want the same
};

/// Bytes that go to a face as they are. No range: the whole object.
struct BlobRead {
  std::string path;  ///< of the entry, for messages
  std::string location;
  std::optional<ByteRange> range;
};

/// What must be true of an object before anything is read from it.
struct ObjectNeed {
  std::string location;
  std::string path;                   ///< the entry that needs most of it, for messages
  ByteRange range;                    ///< the bytes that this entry needs
  std::optional<std::uint64_t> size;  ///< the exact size, set by a tensor that is the whole object
  std::optional<DType> dtype;         ///< of the entry, if it is a tensor
};

/// All that is read from one object, in ascending order of range.begin.
struct ObjectRead {
  std::string location;
  std::vector<TensorRead> tensors;
};

struct ReadPlan {
  std::vector<ObjectRead> objects;
};

/// Collects what is to be read, in two steps: what is needed of the objects, so that they can be looked at before
/// memory is made; then the memory it goes to. Calls may come in any order.
class ReadPlanner {
 public:
  /// `box` of the tensor that is stored in `pieces` will be wanted. Throws Error(kCorrupt) when a piece's byte range
  /// does not have the size of its shape, an encoded piece is met, or the pieces do not cover the box.
  void require(const std::string& path, const std::vector<ShardEntry>& pieces, const Box& box);
  /// All of a tensor that is stored in one piece will be wanted.
  void require(const std::string& path, const TensorEntry& tensor);
  /// The bytes of a blob will be wanted.
  void require(const BlobRead& blob);
  /// What was required, one item an object.
  [[nodiscard]] std::vector<ObjectNeed> needs() const;

  /// Plans to fill `target` with a box that was required. `of_whole`: it is all of the tensor.
  void add(const std::string& path, const std::vector<ShardEntry>& pieces, const Box& box, const TensorView& target,
           bool of_whole = false);
  /// As add(), all of a tensor that is stored in one piece.
  void add(const std::string& path, const TensorEntry& tensor, const TensorView& target);
  /// The plan; leaves the planner without reads.
  ReadPlan build();

 private:
  void need(const std::string& path, const TensorEntry& tensor);
  void need(const std::string& path, const std::string& location, ByteRange range, std::optional<std::uint64_t> size,
            std::optional<DType> dtype);

  ObjectRead& object_at(const std::string& location);

  std::map<std::string, ObjectNeed> needs_;
  std::map<std::string, ObjectRead> objects_;
  ObjectRead* last_object_ = nullptr;  ///< of object_at(): mostly the next, too
};

/// True when the boxes (none empty of it outside `box`) cover every element of `box`; overlaps are allowed.
bool covers(const std::vector<Box>& boxes, const Box& box);

}  // namespace torchsnapshot
