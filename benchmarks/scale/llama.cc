#include "llama.h"

#include <algorithm>
#include <utility>

namespace torchsnapshot::scale {
namespace {

enum class Cut : std::uint8_t { kRows, kColumns, kNone };  ///< by tensor parallelism

/// Makes the tensors of one rank.
class Maker {
 public:
  Maker(const World& world, std::int64_t rank)
      : world_(world),
        tp_(rank % world.tp),
        fsdp_(rank / world.tp % world.fsdp),
        replica_(rank / world.tp / world.fsdp) {}

  ShardedTensor make(DType dtype, const Dims& shape, Cut cut) {
    ShardedTensor tensor;
    tensor.dtype = dtype;
    tensor.shape = shape;
    Box box = Box::whole(shape);
    if (cut == Cut::kRows) take(box, 0, world_.tp, tp_);
    if (cut == Cut::kColumns) take(box, 1, world_.tp, tp_);
    take(box, 0, world_.fsdp, fsdp_);
    if (!box.empty()) {
      TensorView view;
      view.dtype = dtype;
      view.shape = box.sizes;
      view.strides = row_major_strides(box.sizes);
      view.device = DeviceType::kOther;
      view.data = reinterpret_cast<std::byte*>(address_);  // NOLINT(performance-no-int-to-ptr): never looked at
      address_ += view.nbytes() + 512;
      tensor.shards.push_back({std::move(box), std::move(view)});
    }
    for (std::int64_t replica = 0; replica < world_.replicas; ++replica) {
      const std::int64_t first = (replica * world_.fsdp + fsdp_) * world_.tp;
      if (cut != Cut::kNone) {
        tensor.replicas.push_back(first + tp_);
        continue;
      }
      for (std::int64_t tp = 0; tp < world_.tp; ++tp) tensor.replicas.push_back(first + tp);
    }
    return tensor;
  }

 private:
  /// As torch.chunk.
  static void take(Box& box, std::size_t dim, std::int64_t parts, std::int64_t index) {
    const std::int64_t size = box.sizes[dim];
    const std::int64_t step = (size + parts - 1) / parts;
    const std::int64_t begin = std::min(size, index * step);
    box.sizes[dim] = std::min(size, begin + step) - begin;
    box.offsets[dim] += begin;
  }

  const World& world_;
  const std::int64_t tp_;
  const std::int64_t fsdp_;
  const std::int64_t replica_;
  std::uintptr_t address_ = 1 << 20;
};

template <typename Visit>
void for_each_parameter(const Model& model, const Visit& visit) {
  const std::int64_t kv = model.hidden / model.heads * model.kv_heads;
  visit("tok_embeddings.weight", Dims{model.vocab, model.hidden}, Cut::kRows);
  for (std::int64_t layer = 0; layer < model.layers; ++layer) {
    const std::string name = "layers." + std::to_string(layer) + ".";
    visit(name + "attention.wq.weight", Dims{model.hidden, model.hidden}, Cut::kRows);
    visit(name + "attention.wk.weight", Dims{kv, model.hidden}, Cut::kRows);
    visit(name + "attention.wv.weight", Dims{kv, model.hidden}, Cut::kRows);
    visit(name + "attention.wo.weight", Dims{model.hidden, model.hidden}, Cut::kColumns);
    visit(name + "feed_forward.w1.weight", Dims{model.ffn, model.hidden}, Cut::kRows);
    visit(name + "feed_forward.w2.weight", Dims{model.hidden, model.ffn}, Cut::kColumns);
    visit(name + "feed_forward.w3.weight", Dims{model.ffn, model.hidden}, Cut::kRows);
    visit(name + "attention_norm.weight", Dims{model.hidden}, Cut::kNone);
    visit(name + "ffn_norm.weight", Dims{model.hidden}, Cut::kNone);
  }
  visit("norm.weight", Dims{model.hidden}, Cut::kNone);
  visit("output.weight", Dims{model.vocab, model.hidden}, Cut::kRows);
}

}  // namespace

AppState state_of(const World& world, const Model& model, std::int64_t rank, std::int64_t step) {
  Maker maker(world, rank);
  const auto all = [&](DType dtype) {
    Dict dict;
    for_each_parameter(model, [&](const std::string& name, const Dims& shape, Cut cut) {
      dict.items.emplace_back(name, maker.make(dtype, shape, cut));
    });
    return dict;
  };
  TensorView random;
  random.dtype = DType::kUInt8;
  random.shape = {5056};
  random.strides = {1};
  random.device = DeviceType::kOther;
  random.data = reinterpret_cast<std::byte*>(std::uintptr_t{4096});  // NOLINT(performance-no-int-to-ptr)
  AppState state;
  state.emplace_back("model", all(DType::kBFloat16));
  Dict optim;
  optim.items.emplace_back("exp_avg", all(DType::kFloat32));
  optim.items.emplace_back("exp_avg_sq", all(DType::kFloat32));
  state.emplace_back("optim", std::move(optim));
  state.emplace_back("progress", Dict{.items = {{"step", Integer(step)}, {"lr", 8e-5}}});
  state.emplace_back("rng", Dict{.items = {{"state", std::move(random)}}});
  return state;
}

std::int64_t sharded_tensors(const Model& model) {
  std::int64_t count = 0;
  for_each_parameter(model, [&count](const std::string&, const Dims&, Cut) { ++count; });
  return 3 * count;
}

}  // namespace torchsnapshot::scale
