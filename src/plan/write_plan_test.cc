#include "plan/write_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "manifest/validate.h"
#include "tensor/strided_copy.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using testing::HasSubstr;

/// A flat state that owns its values.
struct State {
  std::deque<Value> values;
  FlatState flat;
  std::deque<std::vector<std::byte>> memory;

  void add(const std::string& path, Value value) {
    values.push_back(std::move(value));
    flat.leaves.push_back({path, nullptr});
    flat.leaves.back().value = &values.back();
  }
  TensorView tensor(DType dtype, const Dims& shape) {
    std::vector<std::byte>& bytes = memory.emplace_back(dense_bytes(dtype, shape) + 1);
    return TensorView::dense(bytes.data(), dtype, shape);
  }
};

WritePlanOptions small_options() {
  WritePlanOptions options;
  options.take_id = "t";
  options.max_chunk_bytes = 1000;
  options.max_shard_bytes = 1000;
  options.slab_bytes = 4000;
  return options;
}

template <typename T>
const T& entry_at(const WritePlan& plan, const std::string& path) {
  const Entry* entry = plan.manifest.find(path);
  if (entry == nullptr || !std::holds_alternative<T>(*entry)) throw std::runtime_error("no such entry: " + path);
  return std::get<T>(*entry);
}

void expect_error(ErrorCode code, const std::string& text, const State& state, const WritePlanOptions& options) {
  try {
    plan_write(state.flat, options);
    ADD_FAILURE() << "no error; expected one with: " << text;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(text));
  }
}

TEST(WritePlan, EveryKindOfLeaf) {
  State state;
  state.flat.containers = {{"s", false, true, {Key("a/b"), Key(Integer(3))}}, {"s/l", true, false, {}}};
  state.add("s/int", Integer(-7));
  state.add("s/float", 0.5);
  state.add("s/bool", true);
  state.add("s/str", std::string("x"));
  state.add("s/bytes", Bytes{"\x01"});
  state.add("s/tensor", state.tensor(DType::kBFloat16, {5}));
  state.add("s/opaque", Opaque{"torch_save", "builtins.tuple", SharedBytes::copy_of("pickled")});
  state.add(
      "s/encoded",
      EncodedTensor{DType::kQInt8,
                    {2},
                    {{Box::whole({2}), std::string(kPerTensorQTensor), SharedBytes::copy_of("..0123456789abcdef")}},
                    nullptr,
                    nullptr});
  WritePlanOptions options = small_options();
  options.rank = 3;
  options.world_size = 4;
  options.replicated = {"s/t*", "s/[io]*"};
  const WritePlan plan = plan_write(state.flat, options);

  EXPECT_EQ(plan.manifest.size(), 10U);
  const DictEntry& dict = entry_at<DictEntry>(plan, "3/s");
  EXPECT_TRUE(dict.ordered);
  EXPECT_EQ(dict.keys, (std::vector<Key>{Key("a/b"), Key(Integer(3))}));
  entry_at<ListEntry>(plan, "3/s/l");
  EXPECT_EQ(entry_at<PrimitiveEntry>(plan, "3/s/int"), (PrimitiveEntry{PrimitiveType::kInt, "-7", std::nullopt, true}));
  EXPECT_EQ(entry_at<PrimitiveEntry>(plan, "3/s/float").type, PrimitiveType::kFloat);
  EXPECT_EQ(entry_at<PrimitiveEntry>(plan, "3/s/bool").serialized_value, "True");
  EXPECT_EQ(entry_at<PrimitiveEntry>(plan, "3/s/str").replicated, false);
  EXPECT_EQ(entry_at<PrimitiveEntry>(plan, "3/s/bytes").serialized_value, "AQ==");
  EXPECT_EQ(entry_at<TensorEntry>(plan, "3/s/tensor"),
            (TensorEntry{"data/t/3-0", "buffer_protocol", DType::kBFloat16, {5}, true, ByteRange{0, 10}}));
  EXPECT_EQ(entry_at<ObjectEntry>(plan, "3/s/opaque"),
            (ObjectEntry{"data/t/3-1", "torch_save", "builtins.tuple", true}));
  EXPECT_EQ(entry_at<TensorEntry>(plan, "3/s/encoded"),
            (TensorEntry{"data/t/3-0", "per_tensor_qtensor", DType::kQInt8, {2}, false, ByteRange{64, 82}}));

  ASSERT_EQ(plan.objects.size(), 2U);
  EXPECT_EQ(plan.objects[0].size, 82U);
  EXPECT_EQ(plan.objects[0].items[0].path, "3/s/tensor");
  EXPECT_EQ(plan.objects[1].size, 7U);
  validate({"0.2.0", 4, plan.manifest});
}

TEST(WritePlan, LargeTensorIsChunked) {
  State state;
  const TensorView view = state.tensor(DType::kFloat32, {10, 30});  // 1200 bytes, 2 chunks
  state.add("w", view);
  WritePlanOptions options = small_options();
  options.replicated = {"*"};
  const WritePlan plan = plan_write(state.flat, options);
  const ChunkedTensorEntry& entry = entry_at<ChunkedTensorEntry>(plan, "0/w");
  EXPECT_TRUE(entry.replicated);
  ASSERT_EQ(entry.chunks.size(), 2U);
  EXPECT_EQ(entry.chunks[1].box, (Box{{5, 0}, {5, 30}}));
  EXPECT_EQ(entry.chunks[1].tensor,
            (TensorEntry{"data/t/0-0", "buffer_protocol", DType::kFloat32, {5, 30}, false, ByteRange{640, 1240}}));
  EXPECT_EQ(std::get<TensorView>(plan.objects[0].items[1].source).data, view.data + 600);
}

TEST(WritePlan, OneRowThatIsTooLargeStaysATensor) {
  State state;
  state.add("row", state.tensor(DType::kFloat32, {1, 2000}));
  const WritePlan plan = plan_write(state.flat, small_options());
  EXPECT_EQ(entry_at<TensorEntry>(plan, "0/row").byte_range, (ByteRange{0, 8000}));
}

TEST(WritePlan, SameMemoryIsStoredOnceInAnObjectOfItsOwn) {
  State state;
  const TensorView weight = state.tensor(DType::kFloat32, {8, 8});
  state.add("encoder", weight);
  state.add("other", state.tensor(DType::kFloat32, {8, 8}));
  TensorView tied = weight;
  tied.owner = std::make_shared<int>(1);  // of no account
  state.add("decoder", tied);
  TensorView transposed = weight;
  transposed.strides = {1, 8};
  state.add("transposed", transposed);
  TensorView integers = weight;
  integers.dtype = DType::kInt32;
  state.add("integers", integers);
  TensorView flat = weight;
  flat.shape = {64};
  flat.strides = {1};
  state.add("flat", flat);
  const WritePlan plan = plan_write(state.flat, small_options());
  EXPECT_EQ(entry_at<TensorEntry>(plan, "0/encoder"), entry_at<TensorEntry>(plan, "0/decoder"));
  EXPECT_EQ(entry_at<TensorEntry>(plan, "0/encoder").location, "data/t/0-0");
  // Reads of one byte range by two entries are what the original reader gets wrong.
  EXPECT_EQ(entry_at<TensorEntry>(plan, "0/encoder").byte_range, std::nullopt);
  ASSERT_EQ(plan.objects.size(), 2U);
  EXPECT_EQ(plan.objects[0].items.size(), 1U);
  EXPECT_EQ(plan.objects[0].size, 256U);
  EXPECT_EQ(plan.objects[1].items.size(), 4U);
}

TEST(WritePlan, StridesOfSingleStepsDoNotMatterForSameMemory) {
  State state;
  const TensorView a = state.tensor(DType::kFloat32, {1, 8});
  TensorView b = a;
  b.strides[0] = 77;
  state.add("a", a);
  state.add("b", b);
  EXPECT_EQ(plan_write(state.flat, small_options()).objects.size(), 1U);
}

TEST(WritePlan, DevicesKeepApartAndHaveNoCongruence) {
  State state;
  const TensorView on_cpu = state.tensor(DType::kInt8, {300'000});
  TensorView on_device = on_cpu;
  on_device.device = DeviceType::kOther;
  state.add("cpu", on_cpu);
  state.add("device", on_device);
  TensorView opaque_handle = on_device;  // a device whose tensors have no address
  opaque_handle.data = nullptr;
  state.add("h1", opaque_handle);
  state.add("h2", opaque_handle);
  WritePlanOptions options = small_options();
  options.max_chunk_bytes = 1 << 20;
  options.batching = false;
  const WritePlan plan = plan_write(state.flat, options);
  ASSERT_EQ(plan.objects.size(), 4U);
  EXPECT_EQ(plan.objects[0].items[0].offset, reinterpret_cast<std::uintptr_t>(on_cpu.data) % 4096);
  for (std::size_t i = 1; i < 4; ++i) EXPECT_EQ(plan.objects[i].items[0].offset, 0U);
}

TEST(WritePlan, EqualBytesAreStoredOnce) {
  State state;
  state.add("a", Opaque{"torch_save", "t.A", SharedBytes::copy_of("same")});
  state.add("b", Opaque{"torch_save", "t.B", SharedBytes::copy_of("same")});
  state.add("c", Opaque{"torch_save", "t.A", SharedBytes::copy_of("different")});
  state.add("d", Opaque{"other", "t.A", SharedBytes::copy_of("same")});
  for (const char* path : {"e", "f"}) {
    state.add(
        path,
        EncodedTensor{
            DType::kComplex64, {1}, {{Box::whole({1}), "torch_save", SharedBytes::copy_of("same")}}, nullptr, nullptr});
  }
  const WritePlan plan = plan_write(state.flat, small_options());
  EXPECT_EQ(plan.objects.size(), 4U);
  EXPECT_EQ(entry_at<ObjectEntry>(plan, "0/a").location, entry_at<ObjectEntry>(plan, "0/b").location);
  EXPECT_EQ(entry_at<ObjectEntry>(plan, "0/b").obj_type, "t.B");
  EXPECT_EQ(entry_at<TensorEntry>(plan, "0/e"), entry_at<TensorEntry>(plan, "0/f"));
  EXPECT_EQ(entry_at<TensorEntry>(plan, "0/e").byte_range, std::nullopt);
}

TEST(WritePlan, OpaqueWithoutBytesIsAnEmptyObject) {
  State state;
  state.add("a", Opaque{"torch_save", "t.A", SharedBytes{}});
  const WritePlan plan = plan_write(state.flat, small_options());
  ASSERT_EQ(plan.objects.size(), 1U);
  EXPECT_EQ(plan.objects[0].size, 0U);
  EXPECT_TRUE(plan.objects[0].items.empty());
}

TEST(WritePlan, EmptyTensorsNeedNoBytes) {
  State state;
  state.add("none", TensorView::dense(nullptr, DType::kFloat32, {0, 3}));
  state.add("none2", TensorView::dense(nullptr, DType::kFloat32, {0, 3}));
  WritePlanOptions options = small_options();
  options.replicated = {"none"};
  const WritePlan plan = plan_write(state.flat, options);
  EXPECT_TRUE(plan.objects.empty());
  EXPECT_EQ(entry_at<ChunkedTensorEntry>(plan, "0/none"), (ChunkedTensorEntry{DType::kFloat32, {0, 3}, {}, true}));
  validate({"0.2.0", 1, plan.manifest});
}

ShardedTensor sharded(State& state, const Dims& shape, const std::vector<Box>& boxes) {
  ShardedTensor tensor;
  tensor.dtype = DType::kFloat32;
  tensor.shape = shape;
  for (const Box& box : boxes) tensor.shards.push_back({box, state.tensor(DType::kFloat32, box.sizes)});
  return tensor;
}

TEST(WritePlan, ShardsAreSubdividedAndKeepTheLayout) {
  State state;
  ShardedTensor tensor = sharded(state, {40, 10}, {{{0, 0}, {30, 10}}, {{30, 0}, {0, 10}}, {{30, 0}, {2, 10}}});
  tensor.layout = {{2}, {0, 1}, {{0}, {-1}}};
  state.add("s", tensor);
  const WritePlan plan = plan_write(state.flat, small_options());
  const ShardedTensorEntry& entry = entry_at<ShardedTensorEntry>(plan, "0/s");
  EXPECT_EQ(entry.layout, tensor.layout);
  ASSERT_EQ(entry.shards.size(), 3U);
  EXPECT_EQ(entry.shards[1].box, (Box{{25, 0}, {5, 10}}));
  EXPECT_EQ(entry.shards[2].box, (Box{{30, 0}, {2, 10}}));
  EXPECT_EQ(std::get<TensorView>(plan.objects[0].items[1].source).data, tensor.shards[0].view.data + 1000);
}

TEST(WritePlan, ShardedTensorWithoutElementsKeepsItsShape) {
  State state;
  state.add("s", sharded(state, {4, 0}, {{{0, 0}, {4, 0}}}));
  WritePlan plan = plan_write(state.flat, small_options());
  ASSERT_EQ(plan.objects.size(), 1U);
  EXPECT_EQ(plan.objects[0].size, 0U);
  EXPECT_EQ(entry_at<ShardedTensorEntry>(plan, "0/s").shards,
            (std::vector<ShardEntry>{
                {{{0, 0}, {4, 0}}, {"data/t/0-0", "buffer_protocol", DType::kFloat32, {4, 0}, false, ByteRange{}}}}));
  validate({"0.2.0", 1, plan.manifest});
  state.add("w", state.tensor(DType::kInt8, {3}));
  plan = plan_write(state.flat, small_options());
  EXPECT_EQ(plan.objects.size(), 1U);
}

TEST(WritePlan, Refusals) {
  const WritePlanOptions options = small_options();
  {
    State state;
    state.add("m/q", state.tensor(DType::kQInt8, {3}));
    expect_error(ErrorCode::kInternal, "planning 0/m/q: a view of a quantized tensor", state, options);
  }
  {
    State state;
    state.add("meta", TensorView::dense(nullptr, DType::kFloat32, {3}));
    expect_error(ErrorCode::kInvalidArgument, "planning 0/meta: the tensor has no memory", state, options);
  }
  {
    State state;
    TensorView view = state.tensor(DType::kFloat32, {3});
    view.strides.clear();
    state.add("x", view);
    expect_error(ErrorCode::kInternal, "1 sizes and 0 strides", state, options);
  }
  {
    State state;
    state.add("s", sharded(state, {4}, {{{3}, {2}}}));
    expect_error(ErrorCode::kInvalidArgument, "planning 0/s: a shard whose box", state, options);
  }
  {
    State state;
    ShardedTensor tensor = sharded(state, {4}, {{{0}, {2}}});
    tensor.shards[0].view.dtype = DType::kInt32;
    state.add("s", tensor);
    expect_error(ErrorCode::kInvalidArgument, "a shard whose box, size or dtype", state, options);
  }
  {
    State state;
    state.add("e", EncodedTensor{DType::kQInt8, {2}, {}, nullptr, nullptr});
    expect_error(ErrorCode::kInternal, "one part", state, options);
  }
  {
    State state;
    state.add("e", EncodedTensor{DType::kQInt8, {2}, {{Box::whole({2}), "x", SharedBytes{}}}, nullptr, nullptr});
    expect_error(ErrorCode::kInternal, "without bytes", state, options);
  }
  {
    State state;
    state.add("l", List{});
    expect_error(ErrorCode::kInternal, "not a leaf", state, options);
  }
  {
    State state;
    WritePlanOptions zero = options;
    zero.max_chunk_bytes = 0;
    expect_error(ErrorCode::kInvalidArgument, "must not be 0", state, zero);
  }
}

// Random states -----------------------------------------------------------------------------------------------------

class Generator {
 public:
  explicit Generator(std::uint32_t seed) : random_(seed) {}

  std::int64_t pick(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }
  bool chance(int percent) { return pick(1, 100) <= percent; }

  WritePlanOptions options() {
    WritePlanOptions options;
    options.take_id = "0123-abcd";
    options.rank = pick(0, 3);
    options.world_size = 4;
    options.max_chunk_bytes = static_cast<std::uint64_t>(pick(100, 3000));
    options.max_shard_bytes = static_cast<std::uint64_t>(pick(50, 1000));
    if (chance(30)) options.max_chunk_bytes = options.max_shard_bytes = 1 << 20;
    options.slab_bytes = static_cast<std::uint64_t>(chance(70) ? pick(500, 5000) : pick(100'000, 1'000'000));
    options.batching = chance(80);
    if (chance(50)) options.replicated = {"*[02468]"};
    return options;
  }

  std::unique_ptr<State> state() {
    auto state = std::make_unique<State>();
    std::vector<Value> views;
    const std::int64_t leaves = pick(0, 40);
    for (std::int64_t i = 0; i < leaves; ++i) {
      const std::string path = "k/" + std::to_string(i);
      const std::int64_t kind = pick(0, 9);
      if (kind == 0) {
        state->add(path, Integer(i));
      } else if (kind == 1) {
        state->add(path, Opaque{"torch_save", "t", SharedBytes::copy_of(text(pick(0, 40)))});
      } else if (kind == 2) {
        state->add(path, EncodedTensor{DType::kQUInt8,
                                       {4},
                                       {{Box::whole({4}), "torch_save", SharedBytes::copy_of(text(pick(1, 40)))}},
                                       nullptr,
                                       nullptr});
      } else if (kind == 3) {
        state->add(path, random_sharded(*state));
      } else if (kind == 4 && !views.empty()) {
        state->add(path, views[static_cast<std::size_t>(pick(0, static_cast<std::int64_t>(views.size()) - 1))]);
      } else {
        const Value view = random_view(*state);
        views.push_back(view);
        state->add(path, view);
      }
    }
    return state;
  }

 private:
  /// Few distinct texts, so that some are equal.
  static std::string text(std::int64_t size) { return std::string(static_cast<std::size_t>(size), 'x'); }

  void fill(TensorView& view) {
    const std::uint64_t bytes = view.nbytes();
    std::uint64_t noise = random_();
    for (std::uint64_t i = 0; i < bytes; ++i) {
      noise = noise * 6364136223846793005ULL + 1442695040888963407ULL;
      view.data[i] = static_cast<std::byte>(noise >> 56);
    }
  }

  Value random_view(State& state) {
    constexpr DType kDTypes[] = {DType::kInt8, DType::kBFloat16, DType::kFloat32, DType::kComplex128};
    const DType dtype = kDTypes[pick(0, 3)];
    Dims shape;
    for (std::int64_t d = pick(0, 3); d > 0; --d) shape.push_back(pick(chance(5) ? 0 : 1, 9));
    if (chance(5)) shape = {pick(1, 3), 300'000 / static_cast<std::int64_t>(item_size(dtype))};
    TensorView view = state.tensor(dtype, shape);
    fill(view);
    if (shape.size() >= 2 && chance(30)) {
      std::swap(view.shape[0], view.shape[1]);
      std::swap(view.strides[0], view.strides[1]);
    }
    return view;
  }

  Value random_sharded(State& state) {
    const Dims shape = {pick(1, 12), pick(chance(5) ? 0 : 1, 12)};
    const std::int64_t cut = pick(0, shape[0]);
    const bool second = chance(70);
    std::vector<Box> boxes = {{{0, 0}, {cut, shape[1]}}};
    if (second) boxes.push_back({{cut, 0}, {shape[0] - cut, shape[1]}});
    ShardedTensor tensor = sharded(state, shape, boxes);
    for (LocalShard& shard : tensor.shards) fill(shard.view);
    return tensor;
  }

  std::mt19937 random_;
};

/// What the objects of a plan hold, by location.
std::map<std::string, std::string> execute(const WritePlan& plan) {
  std::map<std::string, std::string> objects;
  for (const WriteObject& object : plan.objects) {
    std::string content(object.size, '\0');
    for (const WriteItem& item : object.items) {
      if (const auto* bytes = std::get_if<SharedBytes>(&item.source)) {
        std::memcpy(content.data() + item.offset, bytes->span().data(), item.size);
      } else {
        gather(std::get<TensorView>(item.source), 0,
               std::as_writable_bytes(std::span(content)).subspan(item.offset, item.size));
      }
    }
    EXPECT_TRUE(objects.emplace(object.location, std::move(content)).second) << object.location;
  }
  return objects;
}

std::string stored(const std::map<std::string, std::string>& objects, const std::string& location,
                   const std::optional<ByteRange>& range) {
  const std::string& content = objects.at(location);
  if (!range) return content;
  EXPECT_LE(range->begin, range->end);
  EXPECT_LE(range->end, content.size());
  return content.substr(range->begin, range->size());
}

std::string dense(const TensorView& view) {
  std::string bytes(view.nbytes(), '\0');
  gather(view, 0, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

void check_objects(const WritePlan& plan, const WritePlanOptions& options) {
  for (std::size_t n = 0; n < plan.objects.size(); ++n) {
    const WriteObject& object = plan.objects[n];
    EXPECT_EQ(object.location, "data/0123-abcd/" + std::to_string(options.rank) + "-" + std::to_string(n));
    std::uint64_t end = 0;
    for (const WriteItem& item : object.items) {
      EXPECT_GT(item.size, 0U);
      EXPECT_GE(item.offset, end);
      end = item.offset + item.size;
      const auto* view = std::get_if<TensorView>(&item.source);
      EXPECT_EQ(item.size, view != nullptr ? view->nbytes() : std::get<SharedBytes>(item.source).size());
    }
    EXPECT_EQ(object.size, end);
    if (object.items.size() > 1) {
      EXPECT_LE(object.size, options.slab_bytes);
      EXPECT_TRUE(options.batching);
    }
  }
}

/// Every entry leads to the bytes of its leaf; returns the places that entries point to.
void check_leaf(const FlatLeaf& leaf, const Entry& entry, const std::map<std::string, std::string>& objects,
                const WritePlanOptions& options) {
  const bool replicated = !options.replicated.empty() && glob_match(options.replicated[0], leaf.path);
  if (!std::holds_alternative<ShardedTensorEntry>(entry)) {
    EXPECT_EQ(is_replicated(entry), replicated);
  }
  if (const auto* view = leaf.value->get_if<TensorView>()) {
    std::string bytes;
    for (const ShardEntry& piece : stored_pieces(entry)) {
      EXPECT_EQ(piece.tensor.dtype, view->dtype);
      const std::string part = stored(objects, piece.tensor.location, piece.tensor.byte_range);
      EXPECT_EQ(part, dense(narrow(*view, piece.box)));
      bytes += part;  // chunks are rows, so their bytes follow each other
    }
    EXPECT_EQ(bytes, dense(*view));
    EXPECT_EQ(std::holds_alternative<ChunkedTensorEntry>(entry),
              view->nbytes() == 0 || chunk_rows(view->shape, view->dtype, options.max_chunk_bytes).size() > 1);
  } else if (const auto* tensor = leaf.value->get_if<ShardedTensor>()) {
    std::int64_t elements = 0;
    for (const ShardEntry& piece : std::get<ShardedTensorEntry>(entry).shards) {
      elements += element_count(piece.box.sizes);
      for (const LocalShard& shard : tensor->shards) {
        Box local = piece.box;
        if (intersect(piece.box, shard.box) != piece.box) continue;
        for (std::size_t d = 0; d < 2; ++d) local.offsets[d] -= shard.box.offsets[d];
        EXPECT_EQ(stored(objects, piece.tensor.location, piece.tensor.byte_range), dense(narrow(shard.view, local)));
      }
    }
    std::int64_t expected = 0;
    for (const LocalShard& shard : tensor->shards) expected += shard.view.numel();
    EXPECT_EQ(elements, expected);
  } else if (const auto* encoded = leaf.value->get_if<EncodedTensor>()) {
    const auto& e = std::get<TensorEntry>(entry);
    EXPECT_EQ(e.serializer, encoded->parts[0].serializer);
    EXPECT_EQ(stored(objects, e.location, e.byte_range), encoded->parts[0].bytes.view());
  } else if (const auto* opaque = leaf.value->get_if<Opaque>()) {
    EXPECT_EQ(stored(objects, std::get<ObjectEntry>(entry).location, std::nullopt), opaque->bytes.view());
  }
}

TEST(WritePlan, RandomStates) {
  for (std::uint32_t seed = 0; seed < 600; ++seed) {
    SCOPED_TRACE(seed);
    Generator generator(seed);
    const std::unique_ptr<State> state = generator.state();
    const WritePlanOptions options = generator.options();
    const WritePlan plan = plan_write(state->flat, options);
    check_objects(plan, options);
    const std::map<std::string, std::string> objects = execute(plan);
    ASSERT_EQ(plan.manifest.size(), state->flat.leaves.size());

    std::set<std::pair<std::string, std::uint64_t>> ranged;  // places with a byte range: one entry each
    std::size_t places = 0;
    std::set<std::string> locations;
    for (const FlatLeaf& leaf : state->flat.leaves) {
      const Entry* entry = plan.manifest.find(std::to_string(options.rank) + "/" + leaf.path);
      ASSERT_NE(entry, nullptr);
      check_leaf(leaf, *entry, objects, options);
      for (const ShardEntry& piece : stored_pieces(*entry)) {
        if (piece.tensor.byte_range && piece.tensor.byte_range->size() > 0) {
          ++places;
          ranged.emplace(piece.tensor.location, piece.tensor.byte_range->begin);
        }
      }
      for (const std::string_view location : entry_locations(*entry)) locations.emplace(location);
    }
    EXPECT_EQ(ranged.size(), places);
    EXPECT_EQ(locations.size(), plan.objects.size());  // nothing is stored for nobody
    std::set<std::pair<const void*, std::string>> sources;
    std::size_t items = 0;
    for (const WriteObject& object : plan.objects) {
      for (const WriteItem& item : object.items) {
        if (const auto* view = std::get_if<TensorView>(&item.source)) {
          ++items;
          std::string layout(dtype_name(view->dtype));
          for (std::size_t d = 0; d < view->shape.size(); ++d) {
            if (view->shape[d] != 1) {
              layout += " " + std::to_string(view->shape[d]) + "/" + std::to_string(view->strides[d]);
            } else {
              layout += " 1";
            }
          }
          sources.emplace(view->data, layout);
        }
      }
    }
    EXPECT_EQ(sources.size(), items);  // the same memory is stored once
    EXPECT_NO_THROW(validate({"0.2.0", options.world_size, plan.manifest}));
  }
}

TEST(WritePlan, IsDeterministic) {
  for (std::uint32_t seed = 0; seed < 50; ++seed) {
    Generator generator(seed);
    const std::unique_ptr<State> state = generator.state();
    const WritePlanOptions options = generator.options();
    const WritePlan a = plan_write(state->flat, options);
    const WritePlan b = plan_write(state->flat, options);
    EXPECT_EQ(a.manifest, b.manifest);
    ASSERT_EQ(a.objects.size(), b.objects.size());
    for (std::size_t i = 0; i < a.objects.size(); ++i) {
      EXPECT_EQ(a.objects[i].location, b.objects[i].location);
      EXPECT_EQ(a.objects[i].size, b.objects[i].size);
      ASSERT_EQ(a.objects[i].items.size(), b.objects[i].items.size());
      for (std::size_t k = 0; k < a.objects[i].items.size(); ++k) {
        EXPECT_EQ(a.objects[i].items[k].path, b.objects[i].items[k].path);
        EXPECT_EQ(a.objects[i].items[k].offset, b.objects[i].items[k].offset);
      }
    }
  }
}

}  // namespace
}  // namespace torchsnapshot
