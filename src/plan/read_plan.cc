#include "plan/read_plan.h"

#include <algorithm>
#include <utility>

#include "tensor/strided_copy.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

/// `box` in coordinates whose origin is `origin`.
Box relative_to(const Box& box, const Dims& origin) {
  Box shifted = box;
  for (std::size_t d = 0; d < origin.size(); ++d) shifted.offsets[d] -= origin[d];
  return shifted;
}

/// Appends what of `box` lies outside `hole` (which intersects it): at most two boxes a dimension.
void subtract(Box box, const Box& hole, std::vector<Box>& out) {
  for (std::size_t d = 0; d < box.offsets.size(); ++d) {
    const std::int64_t begin = box.offsets[d];
    const std::int64_t end = begin + box.sizes[d];
    const std::int64_t hole_begin = hole.offsets[d];
    const std::int64_t hole_end = hole_begin + hole.sizes[d];
    if (hole_begin > begin) {
      Box before = box;
      before.sizes[d] = hole_begin - begin;
      out.push_back(std::move(before));
    }
    if (hole_end < end) {
      Box after = box;
      after.offsets[d] = hole_end;
      after.sizes[d] = end - hole_end;
      out.push_back(std::move(after));
    }
    // What is left to look at is as wide as the hole in this dimension.
    box.offsets[d] = std::max(begin, hole_begin);
    box.sizes[d] = std::min(end, hole_end) - box.offsets[d];
  }
}

/// Appends `region` in parts that are each one unbroken run of the piece: a device takes no others.
void split_unbroken(const Dims& piece_shape, const Box& region, std::size_t dim, std::vector<Box>& out) {
  if (is_unbroken(piece_shape, region)) {
    out.push_back(region);
    return;
  }
  for (std::int64_t i = 0; i < region.sizes[dim]; ++i) {
    Box row = region;
    row.offsets[dim] += i;
    row.sizes[dim] = 1;
    split_unbroken(piece_shape, row, dim + 1, out);
  }
}

bool same_read(const TensorRead& a, const TensorRead& b) {
  return a.range == b.range && a.piece_begin == b.piece_begin && a.piece_shape == b.piece_shape &&
         a.region == b.region && a.view.data == b.view.data && a.view.dtype == b.view.dtype &&
         a.view.strides == b.view.strides;
}

ByteRange stored_range(const TensorEntry& tensor) {
  return tensor.byte_range.value_or(ByteRange{0, dense_bytes(tensor.dtype, tensor.shape)});
}

}  // namespace

bool covers(const std::vector<Box>& boxes, const Box& box) {
  if (box.empty()) return true;
  // In the order of their offsets a grid of boxes leaves a staircase of few remaining boxes at each step.
  std::vector<const Box*> order;
  order.reserve(boxes.size());
  for (const Box& candidate : boxes) order.push_back(&candidate);
  std::sort(order.begin(), order.end(), [](const Box* a, const Box* b) { return a->offsets < b->offsets; });
  std::vector<Box> remaining{box};
  for (const Box* hole : order) {
    std::vector<Box> next;
    for (Box& rest : remaining) {
      if (const auto common = intersect(rest, *hole)) {
        subtract(std::move(rest), *common, next);
      } else {
        next.push_back(std::move(rest));
      }
    }
    remaining = std::move(next);
    if (remaining.empty()) return true;
  }
  return false;
}

void ReadPlanner::require(const std::string& path, const std::vector<ShardEntry>& pieces, const Box& box) {
  std::vector<Box> found;
  for (const ShardEntry& piece : pieces) {
    const TensorEntry& tensor = piece.tensor;
    const auto common = intersect(piece.box, box);
    if (!common) continue;
    found.push_back(*common);
    need(path, tensor);
  }
  if (!covers(found, box)) {
    throw Error(ErrorCode::kCorrupt, "entry '" + path + "': its stored pieces do not cover what is wanted of it");
  }
}

void ReadPlanner::require(const std::string& path, const TensorEntry& tensor) {
  if (element_count(tensor.shape) > 0) need(path, tensor);
}

void ReadPlanner::require(const BlobRead& blob) {
  need(blob.path, blob.location, blob.range.value_or(ByteRange{}), std::nullopt, std::nullopt);
}

void ReadPlanner::need(const std::string& path, const TensorEntry& tensor) {
  if (tensor.serializer != kBufferProtocol) {
    throw Error(ErrorCode::kUnsupported, "entry '" + path + "' is stored with serializer '" + tensor.serializer +
                                             "', which has no plain elements");
  }
  const std::uint64_t bytes = dense_bytes(tensor.dtype, tensor.shape);
  const ByteRange stored = stored_range(tensor);
  if (stored.end < stored.begin || stored.size() != bytes) {
    std::string message = "entry '" + path + "': byte range [" + std::to_string(stored.begin) + ", " +
                          std::to_string(stored.end) + ") of object '" + tensor.location + "' is not " +
                          std::to_string(bytes) + " bytes, as dtype and shape demand";
    if (tensor.dtype == DType::kBFloat16 && stored.size() + 2 == bytes) message += std::string(kOddBFloat16);
    throw Error(ErrorCode::kCorrupt, message);
  }
  need(path, tensor.location, stored, tensor.byte_range ? std::nullopt : std::optional(bytes), tensor.dtype);
}

void ReadPlanner::need(const std::string& path, const std::string& location, ByteRange range,
                       std::optional<std::uint64_t> size, std::optional<DType> dtype) {
  const auto found = needs_.find(location);
  if (found == needs_.end()) {
    needs_.emplace(location, ObjectNeed{location, path, range, size, dtype});
    return;
  }
  ObjectNeed& known = found->second;
  if (size && known.size.value_or(*size) != *size) {
    throw Error(ErrorCode::kCorrupt, "entries '" + known.path + "' and '" + path + "' are each the whole of object '" +
                                         location + "', but of different sizes");
  }
  const auto exact = size ? size : known.size;
  if (range.end > known.range.end) known = {location, path, range, size, dtype};
  known.size = exact;
}

std::vector<ObjectNeed> ReadPlanner::needs() const {
  std::vector<ObjectNeed> needs;
  needs.reserve(needs_.size());
  for (const auto& [location, need] : needs_) needs.push_back(need);
  return needs;
}

void ReadPlanner::add(const std::string& path, const std::vector<ShardEntry>& pieces, const Box& box,
                      const TensorView& target, bool of_whole) {
  for (const ShardEntry& piece : pieces) {
    const TensorEntry& tensor = piece.tensor;
    const auto common = intersect(piece.box, box);
    if (!common) continue;
    const Box wanted = relative_to(*common, piece.box.offsets);
    std::vector<Box> regions;
    if (target.device == DeviceType::kCpu) {
      regions.push_back(wanted);
    } else {
      split_unbroken(tensor.shape, wanted, 0, regions);
    }
    ObjectRead& object = object_at(tensor.location);
    for (Box& region : regions) {
      TensorRead read;
      read.path = path;
      read.of_whole = of_whole;
      read.piece_shape = tensor.shape;
      Box place = region;
      for (std::size_t d = 0; d < place.offsets.size(); ++d) {
        place.offsets[d] += piece.box.offsets[d] - box.offsets[d];
      }
      read.view = narrow(target, place);
      read.region = std::move(region);
      const ByteRange within = enclosing_range(read.piece_shape, read.region, tensor.dtype);
      const std::uint64_t begin = stored_range(tensor).begin;
      read.piece_begin = within.begin;
      read.range = {begin + within.begin, begin + within.end};
      object.tensors.push_back(std::move(read));
    }
  }
}

void ReadPlanner::add(const std::string& path, const TensorEntry& tensor, const TensorView& target) {
  if (element_count(tensor.shape) == 0) return;
  object_at(tensor.location)
      .tensors.push_back({.path = path,
                          .range = stored_range(tensor),
                          .piece_begin = 0,
                          .piece_shape = tensor.shape,
                          .region = Box::whole(tensor.shape),
                          .view = target,
                          .of_whole = true});
}

ObjectRead& ReadPlanner::object_at(const std::string& location) {
  if (last_object_ == nullptr || last_object_->location != location) {
    last_object_ = &objects_[location];
    last_object_->location = location;
  }
  return *last_object_;
}

ReadPlan ReadPlanner::build() {
  ReadPlan plan;
  plan.objects.reserve(objects_.size());
  for (auto& [location, object] : objects_) {
    const auto is_before = [](const TensorRead& a, const TensorRead& b) { return a.range.begin < b.range.begin; };
    if (!std::is_sorted(object.tensors.begin(), object.tensors.end(), is_before)) {
      std::stable_sort(object.tensors.begin(), object.tensors.end(), is_before);
    }
    // Tied weights: two entries, one stored tensor, one target. Once is enough, and twice would be a race.
    const auto twice = std::unique(object.tensors.begin(), object.tensors.end(), same_read);
    object.tensors.erase(twice, object.tensors.end());
    plan.objects.push_back(std::move(object));
  }
  objects_.clear();
  last_object_ = nullptr;
  return plan;
}

}  // namespace torchsnapshot
