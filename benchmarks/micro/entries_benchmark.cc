// What grows with the number of tensors: flatten, plan, manifest written and read, view, inflate.
#include <benchmark/benchmark.h>

#include <memory>
#include <utility>

#include "entries.h"
#include "manifest/rank_view.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot {
namespace {

using bench::ManyTensors;

constexpr std::int64_t kLeaves = 65'536;
constexpr std::int64_t kManyEntries = 1'000'000;

/// Times `make`, but not the destruction of what it made.
template <typename Make>
void time_making(benchmark::State& state, Make make) {
  for (auto _ : state) {
    auto made = make();
    benchmark::DoNotOptimize(made);
    state.PauseTiming();
    { const auto destroyed = std::move(made); }
    state.ResumeTiming();
  }
}

std::size_t count_of(const benchmark::State& state) {
  return static_cast<std::size_t>(state.range(0));
}

void BM_Flatten(benchmark::State& state) {
  const ManyTensors tensors(count_of(state));
  time_making(state, [&] { return tensors.flat(); });
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Flatten)->Arg(kLeaves)->Unit(benchmark::kMillisecond);

void BM_WritePlan(benchmark::State& state) {
  const ManyTensors tensors(count_of(state));
  const FlatState flat = tensors.flat();
  time_making(state, [&] { return plan_write(flat, ManyTensors::options()); });
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
  time_making(state, [&] { return parse_metadata(text); });
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(text.size()));
}
BENCHMARK(BM_ParseMetadata)->Arg(kLeaves)->Arg(kManyEntries)->Unit(benchmark::kMillisecond);

void BM_RankView(benchmark::State& state) {
  const SnapshotMetadata metadata = ManyTensors(count_of(state)).metadata();
  time_making(state, [&] { return std::make_unique<RankView>(metadata, 0); });
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_RankView)->Arg(kLeaves)->Unit(benchmark::kMillisecond);

void BM_Inflate(benchmark::State& state) {
  const FlatState flat = ManyTensors(count_of(state)).flat();
  std::vector<std::string> paths;
  for (const FlatLeaf& leaf : flat.leaves) paths.push_back(leaf.path);
  time_making(state, [&] {
    Inflater inflater("state", flat.containers, paths);
    return inflater.build(std::vector<Value>(paths.size(), Value(true)));
  });
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Inflate)->Arg(kLeaves)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace torchsnapshot
