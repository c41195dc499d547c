// What grows with the number of tensors: flatten, plan, manifest written and read, view, inflate.
#include <benchmark/benchmark.h>

#include "entries.h"
#include "manifest/rank_view.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot {
namespace {

using bench::ManyTensors;

constexpr std::int64_t kLeaves = 65'536;
constexpr std::int64_t kManyEntries = 1'000'000;

std::size_t count_of(const benchmark::State& state) {
  return static_cast<std::size_t>(state.range(0));
}

void BM_Flatten(benchmark::State& state) {
  const ManyTensors tensors(count_of(state));
  for (auto _ : state) benchmark::DoNotOptimize(tensors.flat());
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Flatten)->Arg(kLeaves)->Unit(benchmark::kMillisecond);

void BM_WritePlan(benchmark::State& state) {
  const ManyTensors tensors(count_of(state));
  const FlatState flat = tensors.flat();
  for (auto _ : state) benchmark::DoNotOptimize(plan_write(flat, ManyTensors::options()));
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_WritePlan)->Arg(kLeaves)->Unit(benchmark::kMillisecond);

void BM_WriteMetadata(benchmark::State& state) {
  const SnapshotMetadata metadata = ManyTensors(count_of(state)).metadata();
  std::size_t bytes = 0;
  for (auto _ : state) {
    const std::string text = write_metadata(metadata);
    bytes += text.size();
    benchmark::DoNotOptimize(text.data());
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes));
}
BENCHMARK(BM_WriteMetadata)->Arg(kLeaves)->Arg(kManyEntries)->Unit(benchmark::kMillisecond);

void BM_ParseMetadata(benchmark::State& state) {
  const std::string text = write_metadata(ManyTensors(count_of(state)).metadata());
  for (auto _ : state) benchmark::DoNotOptimize(parse_metadata(text));
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(text.size()));
}
BENCHMARK(BM_ParseMetadata)->Arg(kLeaves)->Arg(kManyEntries)->Unit(benchmark::kMillisecond);

void BM_RankView(benchmark::State& state) {
  const SnapshotMetadata metadata = ManyTensors(count_of(state)).metadata();
  for (auto _ : state) {
    const RankView view(metadata, 0);
    benchmark::DoNotOptimize(view.find("state/layer_3/param_5"));
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_RankView)->Arg(kLeaves)->Unit(benchmark::kMillisecond);

void BM_Inflate(benchmark::State& state) {
  const FlatState flat = ManyTensors(count_of(state)).flat();
  std::vector<std::string> paths;
  for (const FlatLeaf& leaf : flat.leaves) paths.push_back(leaf.path);
  for (auto _ : state) {
    Inflater inflater("state", flat.containers, paths);
    std::vector<Value> values(paths.size(), Value(true));
    benchmark::DoNotOptimize(inflater.build(std::move(values)));
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Inflate)->Arg(kLeaves)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace torchsnapshot
