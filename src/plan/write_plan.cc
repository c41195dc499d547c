#include "plan/write_plan.h"

#include <algorithm>
#include <bit>
#include <deque>
#include <functional>
#include <optional>
#include <string_view>
#include <utility>

#include "manifest/primitive.h"
#include "plan/chunking.h"
#include "plan/glob.h"
#include "plan/layout.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

// A plan is made in three steps: the pieces of all leaves name the items to be stored (collect); every item gets its
// place (arrange); the entries are written with the places known (describe).

/// Bytes to be stored once, for one entry or several.
struct Item {
  std::size_t leaf = 0;                ///< the first that uses it
  const TensorView* view = nullptr;    ///< of the leaf, or one that the planner made; null: bytes
  const SharedBytes* bytes = nullptr;  ///< of the leaf
  std::uint64_t size = 0;
  std::uint32_t uses = 0;
  bool is_object = false;       ///< of an opaque leaf
  std::string_view serializer;  ///< of bytes; of the leaf
};

std::size_t mix(std::size_t seed, std::size_t value) {
  return seed ^ (value + 0x9E3779B97F4A7C15U + (seed << 6) + (seed >> 2));
}

std::size_t hash_of(const Item& item) {
  if (item.view == nullptr) {
    return mix(std::hash<std::string_view>{}(item.bytes->view()), std::hash<std::string_view>{}(item.serializer));
  }
  const TensorView& view = *item.view;
  std::size_t hash = mix(std::hash<const void*>{}(view.data), static_cast<std::size_t>(view.dtype));
  for (const std::int64_t size : view.shape) hash = mix(hash, static_cast<std::size_t>(size));
  return hash;
}

bool same_memory(const TensorView& a, const TensorView& b) {
  if (a.data == nullptr || a.data != b.data || a.dtype != b.dtype || a.device != b.device || a.shape != b.shape) {
    return false;
  }
  for (std::size_t d = 0; d < a.shape.size(); ++d) {
    if (a.shape[d] != 1 && a.strides[d] != b.strides[d]) return false;
  }
  return true;
}

/// Items are the same when they are the same memory, seen in the same way; bytes, when they are equal.
bool same_item(const Item& x, const Item& y) {
  if ((x.view == nullptr) != (y.view == nullptr) || x.is_object != y.is_object) return false;
  if (x.view == nullptr) return x.serializer == y.serializer && x.bytes->view() == y.bytes->view();
  return same_memory(*x.view, *y.view);
}

/// Items by what they are. A table with open addressing: a set of nodes would cost an allocation and a cache miss for
/// each of many small tensors.
class ItemIndex {
 public:
  explicit ItemIndex(const std::vector<Item>& items) : items_(items) {}

  void reserve(std::size_t count) { slots_.assign(std::bit_ceil(count / 2 * 3 + 16), {}); }

  /// The item that is the same as the last of `items`; that one itself, now known, if there is none.
  std::size_t find_or_add_last() {
    if ((count_ + 1) * 4 > slots_.size() * 3) grow();
    const std::size_t last = items_.size() - 1;
    const std::size_t hash = hash_of(items_[last]);
    for (std::size_t at = first_slot(hash);; at = (at + 1) & (slots_.size() - 1)) {
      Slot& slot = slots_[at];
      if (slot.number == 0) {
        slot = {.number = last + 1, .hash = hash};
        ++count_;
        return last;
      }
      if (slot.hash == hash && same_item(items_[slot.number - 1], items_[last])) return slot.number - 1;
    }
  }

 private:
  struct Slot {
    std::size_t number = 0;  ///< 1 + index of the item; 0: empty
    std::size_t hash = 0;
  };

  /// Addresses differ in the middle bits.
  [[nodiscard]] std::size_t first_slot(std::size_t hash) const {
    return ((hash * 0x9E3779B97F4A7C15U) >> 32) & (slots_.size() - 1);
  }

  void grow() {
    std::vector<Slot> larger(std::max<std::size_t>(64, slots_.size() * 2));
    larger.swap(slots_);
    for (const Slot& slot : larger) {
      if (slot.number == 0) continue;
      std::size_t at = first_slot(slot.hash);
      while (slots_[at].number != 0) at = (at + 1) & (slots_.size() - 1);
      slots_[at] = slot;
    }
  }

  const std::vector<Item>& items_;
  std::vector<Slot> slots_;
  std::size_t count_ = 0;
};

constexpr std::size_t kNoBytes = static_cast<std::size_t>(-1);

void check(const TensorView& view) {
  if (view.shape.size() != view.strides.size()) {
    throw Error(ErrorCode::kInternal, "a tensor view with " + std::to_string(view.shape.size()) + " sizes and " +
                                          std::to_string(view.strides.size()) + " strides");
  }
  if (is_quantized(view.dtype)) {
    throw Error(ErrorCode::kInternal,
                "a view of a quantized tensor; its scale and zero point would be lost, so it has to be encoded");
  }
}

void check(const ShardedTensor& tensor, const LocalShard& shard) {
  check(shard.view);
  const std::size_t rank = tensor.shape.size();
  bool fits = shard.box.offsets.size() == rank && shard.box.sizes == shard.view.shape &&
              shard.view.shape.size() == rank && shard.view.dtype == tensor.dtype;
  for (std::size_t d = 0; fits && d < rank; ++d) {
    fits = shard.box.offsets[d] >= 0 && shard.box.sizes[d] >= 0 && shard.box.sizes[d] <= tensor.shape[d] &&
           shard.box.offsets[d] <= tensor.shape[d] - shard.box.sizes[d];
  }
  if (!fits) {
    throw Error(ErrorCode::kInvalidArgument,
                "a shard whose box, size or dtype does not fit the sharded tensor that it belongs to");
  }
}

void check(const EncodedTensor& tensor) {
  if (tensor.parts.size() != 1 || tensor.parts[0].box != Box::whole(tensor.shape)) {
    throw Error(ErrorCode::kInternal, "an encoded tensor is saved as one part that covers it");
  }
  if (tensor.parts[0].bytes.size() == 0) throw Error(ErrorCode::kInternal, "an encoded tensor without bytes");
}

/// The address of bytes that lie in CPU memory as they are to be stored.
std::optional<std::uint64_t> dense_address(const Item& item) {
  if (item.view == nullptr) return reinterpret_cast<std::uintptr_t>(item.bytes->span().data());
  if (item.view->device != DeviceType::kCpu || !item.view->is_contiguous()) return std::nullopt;
  return reinterpret_cast<std::uintptr_t>(item.view->data);
}

class Planner {
 public:
  Planner(const FlatState& state, const WritePlanOptions& options)
      : state_(state), options_(options), rank_(std::to_string(options.rank)) {
    for (const std::string& pattern : options.replicated) globs_.emplace_back(pattern);
  }
  Planner(const Planner&) = delete;  // known_ refers to items_
  Planner& operator=(const Planner&) = delete;

  WritePlan make() {
    items_.reserve(state_.leaves.size());
    item_of_piece_.reserve(state_.leaves.size());
    known_.reserve(state_.leaves.size());
    for (leaf_ = 0; leaf_ < state_.leaves.size(); ++leaf_) {
      try {
        std::visit([&](const auto& node) { collect(node); }, state_.leaves[leaf_].value->node());
      } catch (const Error& error) {
        throw error.with_context("planning " + path_of(leaf_));
      }
    }
    arrange();
    plan_.manifest.reserve(state_.containers.size() + state_.leaves.size());
    add_containers();
    for (const FlatLeaf& leaf : state_.leaves) {
      const bool replicated = is_replicated_path(leaf.path);
      Entry& entry = add_entry(leaf.path);
      std::visit([&](const auto& node) { entry = describe(leaf, node, replicated); }, leaf.value->node());
    }
    return std::move(plan_);
  }

 private:
  [[nodiscard]] std::string with_rank(const std::string& path) const {
    std::string text;
    text.reserve(rank_.size() + 1 + path.size());
    text += rank_;
    text += '/';
    text += path;
    return text;
  }
  [[nodiscard]] std::string path_of(std::size_t leaf) const { return with_rank(state_.leaves[leaf].path); }

  [[nodiscard]] bool is_replicated_path(std::string_view path) const {
    return std::any_of(globs_.begin(), globs_.end(), [path](const Glob& glob) { return glob.matches(path); });
  }

  // Pieces. Both passes see them in the same order.

  /// The chunks of a tensor; none when it is stored whole.
  [[nodiscard]] std::vector<Box> chunks_of(const TensorView& view) const {
    if (view.nbytes() <= options_.max_chunk_bytes) return {};
    std::vector<Box> boxes = chunk_boxes(view.shape, view.dtype, options_.max_chunk_bytes);
    if (boxes.size() == 1) boxes.clear();
    return boxes;
  }

  /// The pieces of a shard. One without elements says nothing, unless the whole tensor has none: then its shape.
  [[nodiscard]] std::vector<Box> pieces_of(const ShardedTensor& tensor, const LocalShard& shard) const {
    if (shard.box.empty() && element_count(tensor.shape) > 0) return {};
    return subdivide_shard(tensor.shape, shard.box, tensor.dtype, options_.max_shard_bytes);
  }

  // First pass.

  /// The next piece is made of these bytes: those of an item that is known already, or of a new one.
  void add_piece(Item item) {
    item.leaf = leaf_;
    items_.push_back(item);
    const std::size_t at = known_.find_or_add_last();
    if (at + 1 != items_.size()) items_.pop_back();
    ++items_[at].uses;
    item_of_piece_.push_back(at);
  }

  /// `view` outlives the planner.
  void add_piece(const TensorView& view) {
    const std::uint64_t size = view.nbytes();
    if (size == 0) {
      item_of_piece_.push_back(kNoBytes);
      return;
    }
    if (view.data == nullptr && view.device == DeviceType::kCpu) {
      throw Error(ErrorCode::kInvalidArgument, "the tensor has no memory (is it on the meta device?)");
    }
    add_piece({.view = &view, .size = size, .serializer = kBufferProtocol});
  }

  void add_part(const TensorView& view, const Box& box) { add_piece(parts_.emplace_back(narrow(view, box))); }

  void collect(const TensorView& view) {
    check(view);
    if (view.nbytes() == 0) return;
    const std::vector<Box> chunks = chunks_of(view);
    if (chunks.empty()) add_piece(view);
    for (const Box& box : chunks) add_part(view, box);
  }

  void collect(const ShardedTensor& tensor) {
    for (const LocalShard& shard : tensor.shards) {
      check(tensor, shard);
      for (Box& box : pieces_of(tensor, shard)) {
        for (std::size_t d = 0; d < box.offsets.size(); ++d) box.offsets[d] -= shard.box.offsets[d];
        add_part(shard.view, box);
      }
    }
  }

  void collect(const EncodedTensor& tensor) {
    check(tensor);
    const EncodedPart& part = tensor.parts[0];
    add_piece({.bytes = &part.bytes, .size = part.bytes.size(), .serializer = part.serializer});
  }

  void collect(const Opaque& opaque) {
    add_piece(
        {.bytes = &opaque.bytes, .size = opaque.bytes.size(), .is_object = true, .serializer = opaque.serializer});
  }

  static void collect(const List&) { throw Error(ErrorCode::kInternal, "a list is not a leaf"); }
  static void collect(const Dict&) { throw Error(ErrorCode::kInternal, "a dict is not a leaf"); }

  template <typename Primitive>
  static void collect(const Primitive&) {}

  // Places.

  void add_object() {
    plan_.objects.push_back(
        {"data/" + options_.take_id + "/" + rank_ + "-" + std::to_string(plan_.objects.size()), 0, {}});
  }

  void arrange() {
    wanted_.reserve(items_.size());
    for (const Item& item : items_) {
      wanted_.push_back({item.size, dense_address(item), item.is_object || item.uses > 1});
    }
    places_ = lay_out(wanted_, options_.slab_bytes, options_.batching);
    std::vector<std::size_t> counts;
    for (const Placement& place : places_) {
      counts.resize(std::max(counts.size(), place.object + 1));
      ++counts[place.object];
    }
    for (const std::size_t count : counts) {
      add_object();
      plan_.objects.back().items.reserve(count);
    }
    for (std::size_t i = 0; i < items_.size(); ++i) {
      const Item& item = items_[i];
      WriteObject& object = plan_.objects[places_[i].object];
      object.size = places_[i].offset + item.size;
      if (item.size == 0) continue;  // an opaque leaf without bytes: an empty object
      object.items.push_back({.path = path_of(item.leaf),
                              .source = item.view == nullptr ? ItemSource(*item.bytes) : ItemSource(*item.view),
                              .offset = places_[i].offset,
                              .size = item.size});
    }
    const bool has_empty_piece =
        std::find(item_of_piece_.begin(), item_of_piece_.end(), kNoBytes) != item_of_piece_.end();
    if (has_empty_piece && plan_.objects.empty()) add_object();
  }

  // Second pass.

  Entry& add_entry(const std::string& path) {
    text_ = rank_;
    text_ += '/';
    text_ += path;
    Entry* const entry = plan_.manifest.try_emplace(text_);
    if (entry == nullptr) throw Error(ErrorCode::kCorrupt, "the manifest has two entries '" + text_ + "'");
    return *entry;
  }

  void add_containers() {
    for (const FlatContainer& container : state_.containers) {
      if (container.is_list) {
        add_entry(container.path) = ListEntry{};
      } else {
        add_entry(container.path) = DictEntry{container.keys, container.ordered};
      }
    }
  }

  const std::string& next_location() {
    const std::size_t item = item_of_piece_[next_piece_++];
    return plan_.objects[places_[item].object].location;
  }

  TensorEntry next_tensor(std::string_view serializer, DType dtype, const Dims& shape, bool replicated) {
    TensorEntry entry{{}, std::string(serializer), dtype, shape, replicated, std::nullopt};
    const std::size_t item = item_of_piece_[next_piece_++];
    if (item == kNoBytes) {
      entry.location = plan_.objects[0].location;
      entry.byte_range = ByteRange{0, 0};
      return entry;
    }
    entry.location = plan_.objects[places_[item].object].location;
    if (!wanted_[item].whole_object) {
      entry.byte_range = ByteRange{places_[item].offset, places_[item].offset + wanted_[item].size};
    }
    return entry;
  }

  Entry describe(const FlatLeaf&, const TensorView& view, bool replicated) {
    ChunkedTensorEntry entry{view.dtype, view.shape, {}, replicated};
    if (view.nbytes() == 0) return entry;
    std::vector<Box> chunks = chunks_of(view);
    if (chunks.empty()) return next_tensor(kBufferProtocol, view.dtype, view.shape, replicated);
    for (Box& box : chunks) {
      TensorEntry stored = next_tensor(kBufferProtocol, view.dtype, box.sizes, false);
      entry.chunks.push_back({std::move(box), std::move(stored)});
    }
    return entry;
  }

  Entry describe(const FlatLeaf&, const ShardedTensor& tensor, bool) {
    ShardedTensorEntry entry{{}, tensor.layout};
    for (const LocalShard& shard : tensor.shards) {
      for (Box& box : pieces_of(tensor, shard)) {
        TensorEntry stored = next_tensor(kBufferProtocol, tensor.dtype, box.sizes, false);
        entry.shards.push_back({std::move(box), std::move(stored)});
      }
    }
    return entry;
  }

  Entry describe(const FlatLeaf&, const EncodedTensor& tensor, bool replicated) {
    return next_tensor(tensor.parts[0].serializer, tensor.dtype, tensor.shape, replicated);
  }

  Entry describe(const FlatLeaf&, const Opaque& opaque, bool replicated) {
    return ObjectEntry{next_location(), opaque.serializer, opaque.type_name, replicated};
  }

  template <typename Primitive>
  Entry describe(const FlatLeaf& leaf, const Primitive&, bool replicated) {
    return make_primitive_entry(*leaf.value, replicated);
  }

  const FlatState& state_;
  const WritePlanOptions& options_;
  std::string rank_;
  std::string text_;  ///< of add_entry
  std::vector<Glob> globs_;

  std::size_t leaf_ = 0;          ///< the one that is collected
  std::deque<TensorView> parts_;  ///< of tensors that are not stored whole
  std::vector<Item> items_;
  ItemIndex known_{items_};
  std::vector<std::size_t> item_of_piece_;  ///< in order of the pieces; kNoBytes for one without elements
  std::size_t next_piece_ = 0;

  std::vector<LayoutItem> wanted_;  ///< by item
  std::vector<Placement> places_;   ///< by item
  WritePlan plan_;
};

}  // namespace

WritePlan plan_write(const FlatState& state, const WritePlanOptions& options) {
  if (options.max_chunk_bytes == 0 || options.max_shard_bytes == 0) {
    throw Error(ErrorCode::kInvalidArgument, "the largest size of a chunk or shard must not be 0");
  }
  return Planner(state, options).make();
}

}  // namespace torchsnapshot
