// Takes and restores of tensors on CUDA devices, over a driver that finds missing order (tests/fake_cuda). The oracle
// is that of all modes: the snapshot holds what was there at the call.
#include <fake_cuda.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "device/cuda_copies.h"
#include "pipeline/testing_faulty.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kEachCall = 10;
constexpr int kRounds = 4;
#else
constexpr int kEachCall = 40;
constexpr int kRounds = 16;
#endif

std::shared_ptr<Storage> fresh_storage() {
  static std::atomic<int> count{0};
  return open_memory_storage("cuda-take-test-" + std::to_string(count++));
}

std::vector<std::byte> content_of(unsigned seed, std::size_t tensor, std::size_t bytes) {
  std::vector<std::byte> content(bytes);
  for (std::size_t at = 0; at < bytes; ++at) {
    content[at] = static_cast<std::byte>(seed * 31 + tensor * 7 + at / 97 + at);
  }
  return content;
}

/// Two streams on each of two devices.
struct Program {
  std::vector<DeviceStream> streams;
  Program() {
    for (const int device : {0, 1, 0, 1}) {
      streams.push_back({.device = device, .handle = fake_cuda::make_stream(device)});
    }
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() {
    for (const DeviceStream& stream : streams) fake_cuda::drop_stream(stream.handle);
  }
};

struct Memory {
  DeviceStream stream;
  std::size_t bytes;
  std::byte* data;
  Memory(const DeviceStream& on, std::size_t size)
      : stream(on), bytes(size), data(fake_cuda::device_alloc(on.device, std::max<std::size_t>(size, 1))) {}
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { fake_cuda::device_free(data); }
};

/// Tensors of the given numbers of floats, in turn on the streams; also views of parts, and tensors on the CPU.
struct State {
  Program& program;
  std::vector<std::shared_ptr<Memory>> memory;
  std::vector<float> on_cpu;
  AppState app;

  State(Program& of, unsigned seed, const std::vector<std::size_t>& sizes) : program(of), on_cpu(3'000, 0) {
    Dict dict;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      memory.push_back(std::make_shared<Memory>(program.streams[i % program.streams.size()], sizes[i] * 4));
      const auto count = static_cast<std::int64_t>(sizes[i]);
      const std::string name = "t" + std::to_string(i);
      dict.items.emplace_back(name, view(*memory.back(), {count}, {1}));
      if (i % 3 == 1) {
        dict.items.emplace_back(name + "columns", view(*memory.back(), {count / 100, 70}, {100, 1}));
        dict.items.emplace_back(name + "transposed", view(*memory.back(), {7, 11}, {1, 7}));
      }
      dict.items.emplace_back(name + "step", TensorView::dense(&on_cpu[i], DType::kFloat32, {}));
    }
    dict.items.emplace_back("cpu", TensorView::dense(&on_cpu[1000], DType::kFloat32, {2000}));
    app.emplace_back("state", std::move(dict));
    set(seed);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    for (const auto& part : memory) fake_cuda::synchronize(part->stream.handle);
  }

  /// Kernels on the program's streams change everything.
  void set(unsigned seed) {
    for (std::size_t i = 0; i < memory.size(); ++i) {
      if (memory[i]->bytes == 0) continue;
      fake_cuda::set(memory[i]->stream.handle, memory[i]->data, content_of(seed, i, memory[i]->bytes));
    }
    std::fill(on_cpu.begin(), on_cpu.end(), static_cast<float>(seed));
  }
  /// The views own their memory, so that it may be copied later.
  void own() {
    for (auto& [name, value] : app[0].second.get_if<Dict>()->items) {
      auto* tensor = value.get_if<TensorView>();
      for (const auto& part : memory) {
        if (tensor->data == part->data) tensor->owner = part;
      }
    }
  }
  void expect_holds(unsigned seed) const {
    for (std::size_t i = 0; i < memory.size(); ++i) {
      if (memory[i]->bytes == 0) continue;
      EXPECT_EQ(fake_cuda::get(memory[i]->stream.handle, memory[i]->data, memory[i]->bytes) ==
                    content_of(seed, i, memory[i]->bytes),
                true)
          << "tensor " << i << " of seed " << seed;
    }
    EXPECT_EQ(on_cpu[1000], static_cast<float>(seed));
  }

 private:
  static TensorView view(const Memory& of, Dims shape, Dims strides) {
    TensorView tensor;
    tensor.data = of.data;
    tensor.dtype = DType::kFloat32;
    tensor.shape = std::move(shape);
    tensor.strides = std::move(strides);
    tensor.device = DeviceType::kCuda;
    tensor.stream = of.stream;
    return tensor;
  }
};

const std::vector<std::size_t> kSizes{1, 1'200'000, 1000, 700'000, 70'000, 0, 4096, 200};

class CudaTake : public testing::Test {
 protected:
  void SetUp() override {
    setenv("TORCHSNAPSHOT_LIBCUDA", TORCHSNAPSHOT_FAKE_CUDA, 1);
    fake_cuda::begin({.seed = 1});
  }
  void TearDown() override {
    expect_well();
    unsetenv("TORCHSNAPSHOT_LIBCUDA");
  }
  static void expect_well() {
    EXPECT_THAT(fake_cuda::violations(), IsEmpty());
    close_cuda_copies();
    const auto left = fake_cuda::counts();
    EXPECT_EQ(left.contexts, 0);
    EXPECT_EQ(left.streams, 0);
    EXPECT_EQ(left.events, 0);
    EXPECT_EQ(left.pinned_bytes, 0U);
  }

  /// A snapshot in `storage`, read to other memory.
  void expect_snapshot(const std::shared_ptr<Storage>& storage, unsigned seed,
                       const std::vector<std::size_t>& sizes = kSizes, std::uint64_t budget = 0) {
    State target(program_, 99, sizes);
    RestoreOptions options;
    options.io.memory_budget_bytes = budget;
    Snapshot(storage).restore(target.app, options);
    target.expect_holds(seed);
  }

  Program program_;
};

TEST_F(CudaTake, HoldsWhatWasThereAtTheCall) {
  unsigned seed = 0;
  for (const std::uint64_t budget : {0ULL, 1ULL, 24ULL << 20}) {
    for (const bool batching : {false, true}) {
      for (const StagingMode mode : {StagingMode::kEager, StagingMode::kLazy}) {
        fake_cuda::begin({.seed = ++seed});
        TakeOptions options;
        options.io.memory_budget_bytes = budget;
        options.batching = batching;
        options.staging = mode;
        options.max_chunk_bytes = seed % 3 == 0 ? 5'000'000 : 512ULL << 20;
        const auto storage = fresh_storage();
        State state(program_, seed, kSizes);
        if (seed % 2 == 0) state.own();
        const PendingSnapshot pending = Snapshot::async_take(storage, state.app, options);
        state.set(77);
        pending.wait();
        expect_snapshot(storage, seed, kSizes, budget);
        state.expect_holds(77);
        if (budget == 24ULL << 20) {
          EXPECT_LE(fake_cuda::counts().peak_pinned_bytes, budget / 4);
        }
        expect_well();
      }
    }
  }
}

TEST_F(CudaTake, Sync) {
  for (const std::uint64_t budget : {0ULL, 1ULL}) {
    TakeOptions options;
    options.io.memory_budget_bytes = budget;
    const auto storage = fresh_storage();
    State state(program_, 3, kSizes);
    Snapshot::take(storage, state.app, options);
    state.set(77);
    expect_snapshot(storage, 3, kSizes, budget);
  }
}

TEST_F(CudaTake, LaterByPromise) {
  unsigned seed = 0;
  for (const std::uint64_t budget : {0ULL, 1ULL, 24ULL << 20}) {
    for (const bool by_stream : {false, true}) {
      for (const bool batching : {false, true}) {
        fake_cuda::begin({.seed = ++seed});
        TakeOptions options;
        options.io.memory_budget_bytes = budget;
        options.staging = StagingMode::kPromised;
        options.batching = batching;
        const auto storage = fresh_storage();
        State state(program_, seed, kSizes);
        state.own();
        const PendingSnapshot pending = Snapshot::async_take(storage, state.app, options);
        std::fill(state.on_cpu.begin(), state.on_cpu.end(), -1.0F);  // what is on the CPU and small is copied
        if (by_stream) {
          pending.let_wait_staged(program_.streams);
        } else {
          pending.wait_staged();
        }
        state.set(77);
        pending.wait();
        pending.let_wait_staged(program_.streams);
        pending.wait_staged();
        expect_snapshot(storage, seed, kSizes, budget);
        expect_well();
      }
    }
  }
}

// What the deferred mode is for: the program's streams have work before them that takes long, and nobody waits for it.
TEST_F(CudaTake, ReturnsWhileTheDevicesAreBusy) {
  const auto storage = fresh_storage();
  State state(program_, 4, {500'000, 1000, 1'200'000, 5});
  state.own();
  std::latch gate(1);
  for (const DeviceStream& stream : program_.streams) fake_cuda::launch(stream.handle, {}, [&] { gate.wait(); });
  TakeOptions options;
  options.staging = StagingMode::kPromised;
  const PendingSnapshot pending = Snapshot::async_take(storage, state.app, options);
  pending.let_wait_staged(program_.streams);  // an optimizer's step begins …
  state.set(77);                              // … and changes everything
  EXPECT_FALSE(pending.done());
  gate.count_down();
  pending.wait();
  expect_snapshot(storage, 4, {500'000, 1000, 1'200'000, 5});
}

TEST_F(CudaTake, SeveralOfOneState) {
  std::vector<std::pair<std::shared_ptr<Storage>, PendingSnapshot>> pending;
  State state(program_, 10, kSizes);
  state.own();
  for (unsigned seed = 10; seed < 14; ++seed) {
    state.set(seed);
    TakeOptions options;
    options.staging = seed % 2 == 0 ? StagingMode::kPromised : StagingMode::kEager;
    const auto storage = fresh_storage();
    pending.emplace_back(storage, Snapshot::async_take(storage, state.app, options));
    for (const auto& [at, take] : pending) take.let_wait_staged(program_.streams);
  }
  state.set(77);
  for (unsigned seed = 10; seed < 14; ++seed) {
    pending[seed - 10].second.wait();
    expect_snapshot(pending[seed - 10].first, seed);
  }
}

TEST_F(CudaTake, ARestoreIntoWhatIsPending) {
  const auto storage = fresh_storage();
  const auto second = fresh_storage();
  State state(program_, 21, kSizes);
  state.own();
  Snapshot::take(storage, state.app);
  state.set(20);
  TakeOptions options;
  options.staging = StagingMode::kPromised;
  const PendingSnapshot pending = Snapshot::async_take(second, state.app, options);
  Snapshot(storage).restore(state.app);
  state.expect_holds(21);
  pending.wait();
  expect_snapshot(second, 20);
}

TEST_F(CudaTake, MemoryThatIsLetGoStaysUntilItIsCopied) {
  const auto storage = fresh_storage();
  std::weak_ptr<Memory> large;
  auto state = std::make_unique<State>(program_, 5, kSizes);
  state->own();
  large = state->memory[1];
  TakeOptions options;
  options.staging = StagingMode::kPromised;
  const PendingSnapshot pending = Snapshot::async_take(storage, state->app, options);
  state.reset();
  pending.wait();
  EXPECT_TRUE(large.expired());
  expect_snapshot(storage, 5);
}

TEST_F(CudaTake, EveryFailureOfTheDriverEndsItCleanly) {
  const std::vector<std::size_t> sizes{3000, 600'000, 7};
  for (const StagingMode mode : {StagingMode::kEager, StagingMode::kPromised}) {
    for (int call = 0;; call += call < kEachCall ? 1 : 9) {
      fake_cuda::begin({.seed = static_cast<unsigned>(call)});
      fake_cuda::fail_call(call, 1);
      const auto storage = fresh_storage();
      TakeOptions options;
      options.staging = mode;
      bool has_failed = false;
      {
        State state(program_, 6, sizes);
        state.own();
        std::string error;
        try {
          const PendingSnapshot pending = Snapshot::async_take(storage, state.app, options);
          if (mode == StagingMode::kPromised) {
            try {
              pending.let_wait_staged(program_.streams);
            } catch (const Error&) {
              pending.wait_staged();
              has_failed = true;
            }
          }
          state.set(77);
          pending.wait();
        } catch (const Error& thrown) {
          error = thrown.what();
          has_failed = true;
          EXPECT_THAT(error, HasSubstr("CUDA_ERROR_INVALID_VALUE"));
          EXPECT_THAT(storage->list(""), IsEmpty());
        }
        if (error.empty()) {
          State target(program_, 99, sizes);
          try {
            Snapshot(storage).restore(target.app);
            target.expect_holds(6);
          } catch (const Error& thrown) {
            has_failed = true;
            EXPECT_THAT(thrown.what(), testing::AllOf(HasSubstr("restoring"), HasSubstr("CUDA_ERROR_INVALID_VALUE")));
          }
        }
      }
      const bool is_reached = fake_cuda::counts().calls > call;
      EXPECT_EQ(has_failed, is_reached) << "call " << call;
      expect_well();
      if (HasFailure() || !is_reached) {
        EXPECT_GT(call, 60);
        break;
      }
    }
  }
}

TEST_F(CudaTake, EveryFailureOfTheStorageEndsItCleanly) {
  const std::vector<std::size_t> sizes{3000, 600'000, 7};
  for (const StagingMode mode : {StagingMode::kEager, StagingMode::kPromised}) {
    for (std::int64_t fail_at = 0;; ++fail_at) {
      const auto faulty = std::make_shared<FaultyStorage>(fresh_storage(), fail_at);
      State state(program_, 6, sizes);
      state.own();
      TakeOptions options;
      options.staging = mode;
      options.io.memory_budget_bytes = fail_at % 2 == 0 ? 1 : 0;
      try {
        const PendingSnapshot pending = Snapshot::async_take(faulty, state.app, options);
        pending.let_wait_staged(program_.streams);
        state.set(77);
        pending.wait();
      } catch (const Error& error) {
        EXPECT_THAT(error.what(), HasSubstr("injected"));
      }
      if (faulty->calls() <= fail_at) break;
    }
  }
}

TEST_F(CudaTake, Cancelled) {
  for (int round = 0; round < kRounds; ++round) {
    State state(program_, 6, kSizes);
    state.own();
    TakeOptions options;
    options.staging = StagingMode::kPromised;
    options.io.memory_budget_bytes = round % 2 == 0 ? 1 : 0;
    const auto storage = fresh_storage();
    const PendingSnapshot pending = Snapshot::async_take(storage, state.app, options);
    std::jthread waiter([&] { pending.wait_staged(); });
    pending.cancel();
    pending.let_wait_staged(program_.streams);
    state.set(77);
    try {
      pending.wait();  // it may have come through
      expect_snapshot(storage, 6);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCancelled);
    }
  }
}

TEST_F(CudaTake, MemoryForTheNextIsGivenBack) {
  State state(program_, 6, kSizes);
  Snapshot::take(fresh_storage(), state.app);
  EXPECT_GT(fake_cuda::counts().pinned_bytes, 0U);
  release_staging_memory();
  EXPECT_EQ(fake_cuda::counts().pinned_bytes, 0U);
}

TEST_F(CudaTake, WithoutADriver) {
  close_cuda_copies();
  setenv("TORCHSNAPSHOT_LIBCUDA", "/nowhere/libcuda.so.1", 1);
  const State state(program_, 6, {10});
  const auto storage = fresh_storage();
  try {
    Snapshot::async_take(storage, state.app);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_THAT(error.what(), HasSubstr("TORCHSNAPSHOT_LIBCUDA"));
  }
  EXPECT_THAT(storage->list(""), IsEmpty());
}

}  // namespace
}  // namespace torchsnapshot
