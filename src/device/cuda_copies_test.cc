// The copies over a driver that finds missing order (tests/fake_cuda).
#include "device/cuda_copies.h"

#include <fake_cuda.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <latch>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>

#include "tensor/strided_copy.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr unsigned kCases = 20;
#else
constexpr unsigned kCases = 100;
#endif
constexpr int kInjected = 1;  // CUDA_ERROR_INVALID_VALUE

std::vector<std::byte> random_bytes(std::mt19937& random, std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

/// A tensor on a device, and what the program thinks is in its memory.
struct Tensor {
  void* stream = nullptr;
  std::vector<std::byte> content;
  TensorView view;

  Tensor(int device, void* on, std::int64_t rows, std::int64_t columns, std::mt19937& random) : stream(on) {
    content.resize(static_cast<std::size_t>(rows * columns) * 4);
    view = TensorView::dense(fake_cuda::device_alloc(device, content.size()), DType::kFloat32, {rows, columns});
    view.device = DeviceType::kCuda;
    view.stream = {.device = device, .handle = stream};
    change(random);
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() {
    fake_cuda::synchronize(stream);
    fake_cuda::device_free(view.data);
  }

  /// A kernel on the program's stream writes new values.
  void change(std::mt19937& random) {
    content = random_bytes(random, content.size());
    fake_cuda::set(stream, view.data, content);
  }
  [[nodiscard]] std::vector<std::byte> on_device() const { return fake_cuda::get(stream, view.data, content.size()); }
  /// The dense bytes of a view of this memory, as the program thinks.
  [[nodiscard]] std::vector<std::byte> expected(const TensorView& of) const {
    TensorView same = of;
    same.data = const_cast<std::byte*>(content.data()) + (of.data - view.data);
    same.device = DeviceType::kCpu;
    std::vector<std::byte> bytes(of.nbytes());
    gather(same, 0, bytes);
    return bytes;
  }
};

/// The driver, without anything of the tests before, and nothing left of this one.
class Copies : public testing::Test {
 protected:
  void SetUp() override {
    setenv("TORCHSNAPSHOT_LIBCUDA", TORCHSNAPSHOT_FAKE_CUDA, 1);
    fake_cuda::begin({.seed = 1});
  }
  void TearDown() override {
    EXPECT_THAT(fake_cuda::violations(), IsEmpty());
    expect_nothing_left();
  }
  static void expect_nothing_left() {
    const auto left = fake_cuda::counts();
    EXPECT_EQ(left.contexts, 0);
    EXPECT_EQ(left.streams, 0);
    EXPECT_EQ(left.events, 0);
    EXPECT_EQ(left.pinned_bytes, 0U);
  }
};

struct Streams {
  std::vector<std::pair<int, void*>> all;
  explicit Streams(int each) {
    for (int i = 0; i < each; ++i) {
      for (const int device : {0, 1}) all.emplace_back(device, fake_cuda::make_stream(device));
    }
  }
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;
  ~Streams() {
    for (const auto& [device, stream] : all) fake_cuda::drop_stream(stream);
  }
};

/// The view, some part of it, perhaps transposed.
TensorView some_view(const Tensor& tensor, std::mt19937& random) {
  TensorView view = tensor.view;
  if (random() % 2 == 0) {
    const auto rows = static_cast<std::int64_t>(random() % static_cast<unsigned>(view.shape[0]));
    const auto columns = static_cast<std::int64_t>(random() % static_cast<unsigned>(view.shape[1]));
    view = narrow(view, {.offsets = {rows, columns}, .sizes = {view.shape[0] - rows, view.shape[1] - columns}});
  }
  if (random() % 3 == 0) {
    std::swap(view.shape[0], view.shape[1]);
    std::swap(view.strides[0], view.strides[1]);
  }
  return view;
}

TEST_F(Copies, ToTheHostAreOrderedBothWays) {
  for (unsigned seed = 0; seed < kCases; ++seed) {
    fake_cuda::begin({.seed = seed, .max_delay = std::chrono::microseconds(seed % 3 == 0 ? 0 : 40)});
    std::mt19937 random(seed);
    CudaCopies copies(load_cuda_driver());
    copies.set_limit(1 + seed % 4);
    const Streams streams(2);
    std::vector<std::unique_ptr<Tensor>> tensors;
    for (int i = 0; i < 5; ++i) {
      const auto& [device, stream] = streams.all[random() % streams.all.size()];
      tensors.push_back(std::make_unique<Tensor>(device, stream, 1 + static_cast<std::int64_t>(random() % 40),
                                                 1 + static_cast<std::int64_t>(random() % 40), random));
    }
    for (int round = 0; round < 2; ++round) {
      std::vector<DeviceStream> used;
      for (const auto& tensor : tensors) used.push_back(tensor->view.stream);
      copies.order_after(used);
      // Two blocks in flight, of parts of several tensors on both devices.
      struct Block {
        std::vector<TensorView> views;
        std::vector<std::vector<std::byte>> expected;
        std::vector<CudaCopies::Part> parts;
        std::optional<CudaCopies::ToHost> copy;
      };
      std::vector<Block> blocks(1 + (copies.kMaxChunks > 1 && seed % 4 > 0 ? 1 : 0));
      for (Block& block : blocks) {
        std::uint64_t at = random() % 100;
        for (const auto& tensor : tensors) {
          block.views.push_back(some_view(*tensor, random));
          block.expected.push_back(tensor->expected(block.views.back()));
        }
        for (const TensorView& view : block.views) {
          block.parts.push_back({.view = &view, .begin = 0, .size = view.nbytes(), .at = at});
          at += view.nbytes() + random() % 10;
        }
        block.copy.emplace(copies.to_host(block.parts, {}));
      }
      copies.order_before(used);
      for (const auto& tensor : tensors) tensor->change(random);  // at once: the streams wait
      for (Block& block : blocks) {
        const auto bytes = block.copy->wait();
        for (std::size_t i = 0; i < block.parts.size(); ++i) {
          const auto found = bytes.subspan(block.parts[i].at, block.parts[i].size);
          ASSERT_TRUE(std::equal(found.begin(), found.end(), block.expected[i].begin(), block.expected[i].end()))
              << "seed " << seed << " part " << i;
        }
      }
    }
    ASSERT_THAT(fake_cuda::violations(), IsEmpty()) << "seed " << seed;
    ASSERT_LE(fake_cuda::counts().peak_pinned_bytes, (1 + seed % 4) * CudaCopies::kChunkBytes);
  }
}

TEST_F(Copies, ToDevicesAreOrderedBothWays) {
  for (unsigned seed = 0; seed < kCases; ++seed) {
    fake_cuda::begin({.seed = seed, .max_delay = std::chrono::microseconds(seed % 3 == 0 ? 0 : 40)});
    std::mt19937 random(seed);
    CudaCopies copies(load_cuda_driver());
    copies.set_limit(1 + seed % 3);
    const Streams streams(2);
    std::vector<std::unique_ptr<Tensor>> tensors;
    std::vector<DeviceStream> used;
    for (int i = 0; i < 4; ++i) {
      const auto& [device, stream] = streams.all[random() % streams.all.size()];
      tensors.push_back(std::make_unique<Tensor>(device, stream, 1 + static_cast<std::int64_t>(random() % 40),
                                                 1 + static_cast<std::int64_t>(random() % 40), random));
      used.push_back(tensors.back()->view.stream);
    }
    copies.order_after(used);
    for (const auto& tensor : tensors) {
      const TensorView view = some_view(*tensor, random);
      const auto bytes = random_bytes(random, view.nbytes());
      // In two pieces, from memory that is changed at once.
      const std::size_t half = bytes.size() / 8 * 4;
      for (const auto& [begin, end] : {std::pair<std::size_t, std::size_t>{0, half}, {half, bytes.size()}}) {
        std::vector<std::byte> piece(bytes.begin() + static_cast<std::ptrdiff_t>(begin),
                                     bytes.begin() + static_cast<std::ptrdiff_t>(end));
        copies.to_device(piece, begin, view, {});
        std::fill(piece.begin(), piece.end(), std::byte{0xEE});
      }
      TensorView model = view;
      model.data = tensor->content.data() + (view.data - tensor->view.data);
      model.device = DeviceType::kCpu;
      scatter(bytes, 0, view.shape, Box::whole(view.shape), model);
    }
    copies.wait_to_device(used);
    for (const auto& tensor : tensors) ASSERT_EQ(tensor->on_device(), tensor->content) << "seed " << seed;
    ASSERT_THAT(fake_cuda::violations(), IsEmpty()) << "seed " << seed;
  }
}

TEST_F(Copies, ManyThreadsShareFewChunks) {
  fake_cuda::begin({.seed = 3});
  CudaCopies copies(load_cuda_driver());
  copies.set_limit(2);
  const Streams streams(1);
  std::vector<std::jthread> threads;
  for (unsigned seed = 0; seed < 6; ++seed) {
    threads.emplace_back([&, seed] {
      std::mt19937 random(seed);
      const auto& [device, stream] = streams.all[seed % 2];
      Tensor tensor(device, stream, 30, 30, random);
      for (int round = 0; round < 15; ++round) {
        copies.order_after({&tensor.view.stream, 1});
        const CudaCopies::Part part{.view = &tensor.view, .begin = 0, .size = tensor.view.nbytes(), .at = 0};
        auto copy = copies.to_host({&part, 1}, {});
        const auto found = copy.wait();
        EXPECT_TRUE(std::equal(tensor.content.begin(), tensor.content.end(), found.begin()));
        tensor.content = random_bytes(random, tensor.content.size());
        {
          const auto done = std::move(copy);  // before this thread wants another chunk
        }
        copies.to_device(tensor.content, 0, tensor.view, {});
        copies.wait_to_device({&tensor.view.stream, 1});
        EXPECT_EQ(tensor.on_device(), tensor.content);
      }
    });
  }
  threads.clear();
  EXPECT_LE(fake_cuda::counts().peak_pinned_bytes, 2 * CudaCopies::kChunkBytes);
}

TEST_F(Copies, AStopEndsTheWaitForAChunk) {
  std::mt19937 random(1);
  CudaCopies copies(load_cuda_driver());
  copies.set_limit(1);
  const Streams streams(1);
  const Tensor tensor(0, streams.all[0].second, 4, 4, random);
  copies.order_after({&tensor.view.stream, 1});
  const CudaCopies::Part part{.view = &tensor.view, .begin = 0, .size = 64, .at = 0};
  const auto first = copies.to_host({&part, 1}, {});
  EXPECT_FALSE(copies.try_to_host({&part, 1}));
  std::stop_source stop;
  std::jthread stopper([&] { stop.request_stop(); });
  try {
    static_cast<void>(copies.to_host({&part, 1}, stop.get_token()));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCancelled);
  }
}

TEST_F(Copies, TheProgramsStreamWaitsWithoutTheHost) {
  // The copy waits for a kernel that does not end; neither order_before nor what the program queues then block.
  std::mt19937 random(1);
  CudaCopies copies(load_cuda_driver());
  const Streams streams(1);
  Tensor tensor(0, streams.all[0].second, 8, 8, random);
  const auto before = tensor.content;
  std::latch gate(1);
  fake_cuda::launch(tensor.stream, {}, [&] { gate.wait(); });
  copies.order_after({&tensor.view.stream, 1});
  const CudaCopies::Part part{.view = &tensor.view, .begin = 0, .size = tensor.view.nbytes(), .at = 0};
  auto copy = copies.to_host({&part, 1}, {});
  copies.order_before({&tensor.view.stream, 1});
  tensor.change(random);
  gate.count_down();
  const auto found = copy.wait();
  EXPECT_TRUE(std::equal(before.begin(), before.end(), found.begin()));
}

/// What a program does with copies of both kinds. Throws what they throw.
void run_all(CudaCopies& copies, const std::vector<std::unique_ptr<Tensor>>& tensors) {
  std::vector<DeviceStream> used;
  for (const auto& tensor : tensors) used.push_back(tensor->view.stream);
  copies.order_after(used);
  std::vector<CudaCopies::ToHost> flying;
  for (int i = 0; i < 2; ++i) {
    std::vector<CudaCopies::Part> parts;
    std::uint64_t at = 0;
    for (const auto& tensor : tensors) {
      parts.push_back({.view = &tensor->view, .begin = 0, .size = tensor->view.nbytes(), .at = at});
      at += tensor->view.nbytes();
    }
    flying.push_back(copies.to_host(parts, {}));
  }
  copies.order_before(used);
  for (auto& copy : flying) static_cast<void>(copy.wait());
  flying.clear();
  try {
    for (int i = 0; i < 3; ++i) {
      for (const auto& tensor : tensors) copies.to_device(tensor->content, 0, tensor->view, {});
    }
  } catch (const Error&) {
    copies.wait_to_device(used);
    throw;
  }
  copies.wait_to_device(used);
}

TEST_F(Copies, EveryCallMayFail) {
  int failed = 0;
  for (int call = 0;; call += kCases < 100 && call > 20 ? 5 : 1) {
    fake_cuda::begin({.seed = static_cast<unsigned>(call)});
    std::mt19937 random(1);
    const Streams streams(1);
    std::vector<std::unique_ptr<Tensor>> tensors;
    for (const auto& [device, stream] : streams.all) {
      tensors.push_back(std::make_unique<Tensor>(device, stream, 20, 20, random));
      TensorView& view = tensors.back()->view;
      view = narrow(view, {.offsets = {0, 3}, .sizes = {20, 17}});
      tensors.back()->content.resize(view.nbytes());
    }
    fake_cuda::fail_call(call, kInjected);
    bool is_over = false;
    try {
      CudaCopies copies(load_cuda_driver());
      copies.set_limit(2);
      try {
        run_all(copies, tensors);
        is_over = fake_cuda::counts().calls <= call;
        if (!is_over) FAIL() << "the failure of call " << call << " was swallowed";
      } catch (const Error& error) {
        ++failed;
        EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("cu"), HasSubstr("CUDA_ERROR_INVALID_VALUE"),
                                                 HasSubstr("on CUDA device ")));
        run_all(copies, tensors);  // the next one works
      }
    } catch (const Error& error) {
      ++failed;
      EXPECT_THAT(error.what(), HasSubstr("cuInit: CUDA_ERROR_INVALID_VALUE"));
    }
    for (const auto& tensor : tensors) {
      fake_cuda::synchronize(tensor->stream);
      tensor->view.data -= 12;  // as it was allocated
    }
    ASSERT_THAT(fake_cuda::violations(), IsEmpty()) << "call " << call;
    expect_nothing_left();
    if (is_over) break;
  }
  EXPECT_GT(failed, kCases < 100 ? 25 : 60);
}

TEST_F(Copies, AfterAFaultOfTheDeviceNothingHangs) {
  for (int copy = 0; copy < 10; ++copy) {
    fake_cuda::begin({.seed = 1});
    std::mt19937 random(1);
    const Streams streams(1);
    std::vector<std::unique_ptr<Tensor>> tensors;
    for (const auto& [device, stream] : streams.all) {
      tensors.push_back(std::make_unique<Tensor>(device, stream, 20, 20, random));
    }
    CudaCopies copies(load_cuda_driver());
    copies.set_limit(1 + static_cast<std::size_t>(copy % 3) + 1);
    fake_cuda::fail_copy(copy);
    for (int again = 0; again < 3; ++again) {
      try {
        run_all(copies, tensors);
        FAIL() << "no error";
      } catch (const Error& error) {
        EXPECT_THAT(error.what(), HasSubstr("CUDA_ERROR_ILLEGAL_ADDRESS"));
      }
    }
    // What the device may still write to is not freed. A process in that state has only its end before it.
    fake_cuda::begin({.seed = 1});
  }
}

TEST_F(Copies, OutOfPinnedMemoryIsNoSpace) {
  std::mt19937 random(1);
  CudaCopies copies(load_cuda_driver());
  const Streams streams(1);
  const Tensor tensor(0, streams.all[0].second, 4, 4, random);
  copies.order_after({&tensor.view.stream, 1});
  fake_cuda::fail_call(fake_cuda::counts().calls + 1, cuda::kOutOfMemory);  // after cuCtxPushCurrent
  const CudaCopies::Part part{.view = &tensor.view, .begin = 0, .size = 64, .at = 0};
  try {
    static_cast<void>(copies.to_host({&part, 1}, {}));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kNoSpace);
    EXPECT_THAT(error.what(), HasSubstr("cuMemHostAlloc on CUDA device 0: CUDA_ERROR_OUT_OF_MEMORY"));
  }
}

TEST_F(Copies, NoDriver) {
  setenv("TORCHSNAPSHOT_LIBCUDA", "/nowhere/libcuda.so.1", 1);
  for (int again = 0; again < 2; ++again) {
    try {
      cuda_copies();
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
      EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("NVIDIA's driver"), HasSubstr("TORCHSNAPSHOT_LIBCUDA"),
                                               HasSubstr("/nowhere/libcuda.so.1")));
    }
  }
  EXPECT_TRUE(is_cuda_driver_wanted());
  setenv("TORCHSNAPSHOT_LIBCUDA", "off", 1);
  EXPECT_FALSE(is_cuda_driver_wanted());
}

TEST_F(Copies, NoSuchDevice) {
  CudaCopies copies(load_cuda_driver());
  const DeviceStream stream{.device = 7, .handle = nullptr};
  try {
    copies.order_after({&stream, 1});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_THAT(error.what(), HasSubstr("cuDeviceGet on CUDA device 7"));
  }
  copies.order_before({&stream, 0});
}

TEST_F(Copies, NotInAForkedChild) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer does not follow a fork of several threads";
#endif
  cuda_copies();
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    release_pinned_memory();
    try {
      cuda_copies();
      _exit(1);
    } catch (const Error& error) {
      _exit(std::strstr(error.what(), "forked child") != nullptr ? 0 : 2);
    }
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  close_cuda_copies();
}

// The fake itself: what the tests above would not see if it were blind.
TEST_F(Copies, TheFakeSeesWhatIsNotOrdered) {
  std::mt19937 random(1);
  const auto violations_of = [&](const std::function<void(CudaCopies&, Tensor&)>& program) {
    fake_cuda::begin({.seed = 1});
    CudaCopies copies(load_cuda_driver());
    const Streams streams(1);
    Tensor tensor(0, streams.all[0].second, 4, 4, random);
    program(copies, tensor);
    const auto found = fake_cuda::violations();
    fake_cuda::begin({.seed = 1});
    return found;
  };
  const auto copy_all = [](CudaCopies& copies, Tensor& tensor) {
    const CudaCopies::Part part{.view = &tensor.view, .begin = 0, .size = tensor.view.nbytes(), .at = 0};
    return copies.to_host({&part, 1}, {});
  };
  EXPECT_THAT(violations_of([&](CudaCopies& copies, Tensor& tensor) {
                auto copy = copy_all(copies, tensor);  // not after the program's kernel
                static_cast<void>(copy.wait());
              }),
              testing::ElementsAre(HasSubstr("read while something may still write to it")));
  EXPECT_THAT(violations_of([&](CudaCopies& copies, Tensor& tensor) {
                copies.order_after({&tensor.view.stream, 1});
                auto copy = copy_all(copies, tensor);
                tensor.change(random);  // not after the copy
                static_cast<void>(copy.wait());
              }),
              testing::ElementsAre(HasSubstr("written while something may still read it")));
  EXPECT_THAT(violations_of([&](CudaCopies& copies, Tensor& tensor) {
                copies.order_after({&tensor.view.stream, 1});
                copies.to_device(tensor.content, 0, tensor.view, {});
                tensor.change(random);  // before it is known to be there
                copies.wait_to_device({&tensor.view.stream, 1});
              }),
              testing::ElementsAre(HasSubstr("written while something may still write to it")));
}

TEST_F(Copies, TheFakeSeesPinnedMemoryInUse) {
  fake_cuda::begin({.seed = 1});
  {
    const CudaDriver driver = load_cuda_driver();
    CudaDevice device(driver, 0);
    auto* const pinned = static_cast<std::byte*>(device.host_alloc(4096));
    std::byte* const memory = fake_cuda::device_alloc(0, 4096);
    const auto address = reinterpret_cast<std::uintptr_t>(memory);
    device.copy_to_host(pinned, address, 64);
    device.copy_to_host(pinned + 64, address, 64);
    EXPECT_THAT(fake_cuda::violations(), IsEmpty());
    device.copy_to_host(pinned + 60, address, 8);
    EXPECT_THAT(fake_cuda::violations(), testing::Each(HasSubstr("pinned memory is used by a copy while")));
    EXPECT_FALSE(fake_cuda::violations().empty());
    EXPECT_TRUE(device.settle());
    EXPECT_EQ(pinned[0], std::byte{0});  // accessible again
    device.host_free(pinned);
    fake_cuda::device_free(memory);
  }
  fake_cuda::begin({.seed = 1});
}

}  // namespace
}  // namespace torchsnapshot
