// What is done to every byte: checksum, copy, both in one pass, gathering a strided tensor.
#include <benchmark/benchmark.h>

#include <cstring>
#include <vector>

#include "integrity/crc32c.h"
#include "tensor/strided_copy.h"

namespace torchsnapshot {
namespace {

std::vector<std::byte> random_bytes(std::size_t size) {
  std::vector<std::byte> bytes(size);
  std::uint32_t state = 1;
  for (std::byte& byte : bytes) {
    state = state * 1664525U + 1013904223U;
    byte = static_cast<std::byte>(state >> 24);
  }
  return bytes;
}

void count_bytes(benchmark::State& state) {
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * state.range(0));
}

void BM_Crc32c(benchmark::State& state) {
  const std::vector<std::byte> bytes = random_bytes(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) benchmark::DoNotOptimize(crc32c(0, bytes));
  count_bytes(state);
  state.SetLabel(crc32c_kernel_name());
}
BENCHMARK(BM_Crc32c)->Arg(64)->Arg(4 << 10)->Arg(4 << 20)->Arg(256 << 20);

void BM_CopyCrc32c(benchmark::State& state) {
  const std::vector<std::byte> from = random_bytes(static_cast<std::size_t>(state.range(0)));
  std::vector<std::byte> to(from.size());
  for (auto _ : state) benchmark::DoNotOptimize(copy_crc32c(0, to, from));
  count_bytes(state);
}
BENCHMARK(BM_CopyCrc32c)->Arg(4 << 10)->Arg(4 << 20)->Arg(256 << 20);

void BM_Memcpy(benchmark::State& state) {
  const std::vector<std::byte> from = random_bytes(static_cast<std::size_t>(state.range(0)));
  std::vector<std::byte> to(from.size());
  for (auto _ : state) {
    std::memcpy(to.data(), from.data(), from.size());
    benchmark::ClobberMemory();
  }
  count_bytes(state);
}
BENCHMARK(BM_Memcpy)->Arg(4 << 10)->Arg(4 << 20)->Arg(256 << 20);

/// A transposed fp32 matrix.
void BM_GatherTransposed(benchmark::State& state) {
  const std::int64_t side = 4096;
  std::vector<std::byte> from = random_bytes(static_cast<std::size_t>(state.range(0)));
  std::vector<std::byte> to(from.size());
  TensorView view = TensorView::dense(from.data(), DType::kFloat32, {side, side});
  view.strides = {1, side};
  for (auto _ : state) {
    gather(view, 0, to);
    benchmark::ClobberMemory();
  }
  count_bytes(state);
}
BENCHMARK(BM_GatherTransposed)->Arg(64 << 20);

}  // namespace
}  // namespace torchsnapshot
