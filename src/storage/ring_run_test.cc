// Large blocks on rings that misbehave: the bytes are right or there is an error, the ring is idle when the call
// returns (FakeRing checks that), and nothing hangs.
#include <algorithm>
#include <fstream>
#include <functional>
#include <iterator>
#include <thread>

#include "storage/fs_storage.h"
#include "storage/testing.h"
#include "storage/testing_sys.h"

namespace torchsnapshot {
namespace {

using Strings = std::vector<std::string>;

/// One block of many pieces, straight or through bounce buffers, out and in.
class RingFaults : public testing::TestWithParam<bool> {
 protected:
  static FsTuning tuning() {
    FsTuning tuning;
    tuning.ring = {16384, 16384};
    return tuning;
  }

  void write() {
    const auto writer = storage_->create("x", size_, {});
    writer->write(0, block());
    writer->finish();
  }
  void read() {
    std::ranges::fill(block(), std::byte{0});
    storage_->open("x", {})->read(0, block());
  }
  std::span<std::byte> block() {
    const auto address = std::bit_cast<std::uintptr_t>(memory_.data());
    const std::size_t phase = GetParam() ? 64 : 0;  // of 512
    return std::span(memory_).subspan((4096 - address % 4096) % 4096 + phase, size_);
  }
  void fill() { std::copy_n(bytes_of(content_).begin(), size_, block().begin()); }
  bool is_right() { return std::ranges::equal(block(), bytes_of(content_)); }

  /// Writes and reads with faults, and reads what was written without.
  void expect_right() {
    fill();
    write();
    read();
    EXPECT_TRUE(is_right());
    std::ifstream file(folder_.path() / "x", std::ios::binary);
    EXPECT_TRUE(std::string(std::istreambuf_iterator<char>(file), {}) == content_);
  }
  void expect_fallen_once(std::string_view to, std::initializer_list<std::string_view> parts) {
    EXPECT_EQ(storage_->io_path(), to);
    const Strings notices = storage_->take_notices();
    ASSERT_EQ(notices.size(), 1U);
    for (const std::string_view part : parts) EXPECT_NE(notices[0].find(part), std::string::npos) << notices[0];
  }
  void expect_still_on_rings() {
    EXPECT_EQ(storage_->io_path(), kUring);
    EXPECT_TRUE(storage_->take_notices().empty());
  }
  /// A write, and a read, that fail; the storage can still be used.
  void expect_failure(ErrorCode code, const std::function<void()>& begin_fault,
                      const std::function<void()>& end_fault) {
    fill();
    begin_fault();
    expect_error(code, {"write", "/x"}, [&] { write(); });
    EXPECT_TRUE(storage_->list("").empty());
    end_fault();
    write();
    begin_fault();
    expect_error(code, {"read", "/x"}, [&] { read(); });
    end_fault();
    read();
    EXPECT_TRUE(is_right());
    storage_->remove(Strings{"x"});
  }

  static constexpr std::string_view kUring = "io_uring + O_DIRECT";
  static constexpr std::string_view kThreads = "threads + O_DIRECT";
  static constexpr std::string_view kPageCache = "page cache";

  const std::size_t size_ = 300'123;
  const std::string content_ = random_text(size_, 3);
  std::vector<std::byte> memory_ = std::vector<std::byte>(size_ + std::size_t{2} * 4096);
  TemporaryFolder folder_;
  std::shared_ptr<PretendSys> sys_ = std::make_shared<PretendSys>();
  RingScript& script_ = *sys_->script;
  std::shared_ptr<Storage> storage_ = make_fs_storage(folder_.path().native(), sys_, tuning());
};

INSTANTIATE_TEST_SUITE_P(Memory, RingFaults, testing::Bool(),
                         [](const auto& is_bounced) { return is_bounced.param ? "Bounced" : "Straight"; });

/// errno of every n-th call.
auto every(int n, int error) {
  return [n, error, calls = 0]() mutable { return ++calls % n == 0 ? error : 0; };
}

int all_of(const RingRequest& request) {
  return static_cast<int>(request.size);
}

TEST_P(RingFaults, None) {
  expect_right();
  EXPECT_GT(script_.moved, 36);
  EXPECT_EQ(script_.made, 3);  // to try it, for the writer, for the reader: they go with the last open object
  expect_still_on_rings();
}

TEST_P(RingFaults, SignalsInterrupt) {
  script_.submit_error = every(2, EINTR);
  script_.wait_error = every(2, EINTR);
  expect_right();
  EXPECT_GT(script_.moved, 36);
  expect_still_on_rings();
}

TEST_P(RingFaults, SubmitTakesOneAtATime) {
  script_.most_taken = 1;
  expect_right();
  EXPECT_GT(script_.moved, 36);
  expect_still_on_rings();
}

TEST_P(RingFaults, SubmitIsBusyAtTimes) {
  for (const int error : {EAGAIN, EBUSY, ENOMEM}) {
    for (const int n : {2, 3, 5}) {
      script_.submit_error = every(n, error);
      expect_right();
      storage_->remove(Strings{"x"});
    }
  }
  EXPECT_GT(script_.moved, 36);
  expect_still_on_rings();
}

TEST_P(RingFaults, SubmitIsAlwaysBusy) {
  script_.submit_error = [] { return EAGAIN; };
  expect_right();
  EXPECT_EQ(script_.moved, 0);
  EXPECT_GT(sys_->direct_transfers, 36);
  expect_still_on_rings();
}

TEST_P(RingFaults, SubmitIsForbidden) {
  for (const int after : {0, 1, 2, 5}) {
    storage_ = make_fs_storage(folder_.path().native(), sys_, tuning());
    script_.made = 0;
    script_.submit_error = [after, calls = 0]() mutable { return calls++ < after ? 0 : EPERM; };
    expect_right();
    expect_fallen_once(kThreads, {"io_uring_enter", "Operation not permitted"});
    EXPECT_LE(script_.made, 2);
    storage_->remove(Strings{"x"});
  }
}

TEST_P(RingFaults, WaitingDoesNotWork) {
  script_.wait_error = [] { return EBADF; };
  expect_right();
  expect_fallen_once(kThreads, {"Bad file descriptor"});
}

TEST_P(RingFaults, ShortTransfers) {
  for (const int moved : {1, 4095, 4096, 5000, 8192, 16383, 0}) {
    script_.result = [moved](const RingRequest& request) { return std::min(moved, static_cast<int>(request.size)); };
    expect_right();
    expect_still_on_rings();
    storage_->remove(Strings{"x"});
  }
}

TEST_P(RingFaults, ResultsThatSayNothingOfTheData) {
  for (const int error : {EAGAIN, EINTR, ECANCELED, ENOMEM}) {
    script_.result = [error, calls = 0](const RingRequest& request) mutable {
      return ++calls % 3 == 0 ? -error : all_of(request);
    };
    expect_right();
    expect_still_on_rings();
    storage_->remove(Strings{"x"});
  }
}

TEST_P(RingFaults, TheRingRefusesWhatAThreadMayDo) {
  script_.result = [](const RingRequest&) { return -EINVAL; };
  expect_right();
  expect_fallen_once(kThreads, {"Invalid argument", "io_uring"});
}

TEST_P(RingFaults, DirectTransfersAreRefusedAltogether) {
  script_.result = [calls = 0](const RingRequest& request) mutable { return ++calls > 3 ? -EINVAL : all_of(request); };
  sys_->direct_error = [] { return EINVAL; };
  expect_right();
  expect_fallen_once(kPageCache, {"O_DIRECT", "a transfer: Invalid argument", "page cache"});
}

TEST_P(RingFaults, EachRequestFailsOnce) {
  for (const auto& [error, code] : {std::pair(EIO, ErrorCode::kIo), std::pair(ENOSPC, ErrorCode::kNoSpace)}) {
    for (int number = 0; number < 18; ++number) {
      expect_failure(
          code,
          [&, failing = error] {
            script_.result = [number, failing, calls = 0](const RingRequest& request) mutable {
              return calls++ == number ? -failing : all_of(request);
            };
          },
          [&] { script_.result = all_of; });
      ASSERT_FALSE(HasFailure()) << number;
    }
  }
  expect_still_on_rings();
}

TEST_P(RingFaults, NoMoreRings) {
  sys_->error = [made = 0](std::string_view call) mutable { return call == "make_ring" && ++made > 1 ? ENOMEM : 0; };
  expect_right();
  expect_fallen_once(kThreads, {"io_uring_setup: Cannot allocate memory"});
}

TEST_P(RingFaults, AModeThatInsistsFails) {
  FsTuning insisting = tuning();
  insisting.mode = IoMode::kUring;
  storage_ = make_fs_storage(folder_.path().native(), sys_, insisting);
  script_.result = [](const RingRequest&) { return -EINVAL; };
  expect_error(ErrorCode::kUnsupported, {"io_uring", "'io'", "'auto'"}, [&] { write(); });
  script_.result = all_of;
  script_.submit_error = [] { return EPERM; };
  expect_error(ErrorCode::kUnsupported, {"io_uring", "'io'", "'auto'"}, [&] { write(); });
  EXPECT_TRUE(storage_->list("").empty());
}

TEST_P(RingFaults, RandomMixtures) {
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    std::minstd_rand random(seed + 1);
    auto sometimes = [random](std::initializer_list<int> errors) mutable {
      const auto choice = random() % 12;
      return choice < errors.size() ? *(errors.begin() + choice) : 0;
    };
    script_.submit_error = [sometimes]() mutable { return sometimes({EINTR, EAGAIN, EBUSY}); };
    script_.wait_error = [sometimes]() mutable { return sometimes({EINTR}); };
    script_.most_taken = 1 + random() % 8;
    script_.result = [sometimes, random](const RingRequest& request) mutable {
      const int error = sometimes({EAGAIN, EINTR});
      if (error != 0) return -error;
      return random() % 4 == 0 ? static_cast<int>(random() % request.size) : all_of(request);
    };
    sys_->direct_size = [random](std::size_t size) mutable { return random() % 3 == 0 ? random() % size : size; };
    expect_right();
    expect_still_on_rings();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    storage_->remove(Strings{"x"});
  }
}

/// The same without rings.
class ThreadFaults : public RingFaults {
 protected:
  ThreadFaults() {
    sys_->error = [](std::string_view call) { return call == "make_ring" ? EPERM : 0; };
  }
  static FsTuning small_pieces() {
    FsTuning tuning;
    tuning.thread = {16384, 16384};
    return tuning;
  }
  void SetUp() override { storage_ = make_fs_storage(folder_.path().native(), sys_, small_pieces()); }
};

INSTANTIATE_TEST_SUITE_P(Memory, ThreadFaults, testing::Bool(),
                         [](const auto& is_bounced) { return is_bounced.param ? "Bounced" : "Straight"; });

TEST_P(ThreadFaults, SignalsAndShortTransfers) {
  for (const std::size_t moved : {1U, 4096U, 5000U, 16383U}) {
    sys_->direct_error = every(3, EINTR);
    sys_->direct_size = [moved](std::size_t size) { return std::min(moved, size); };
    expect_right();
    storage_->remove(Strings{"x"});
  }
  expect_fallen_once(kThreads, {"io_uring_setup: Operation not permitted"});
}

TEST_P(ThreadFaults, RefusedInTheMiddle) {
  for (const int after : {0, 1, 5, 25}) {
    storage_ = make_fs_storage(folder_.path().native(), sys_, small_pieces());
    sys_->direct_error = [after, calls = 0]() mutable { return calls++ < after ? 0 : EINVAL; };
    expect_right();
    EXPECT_EQ(storage_->io_path(), kPageCache);
    EXPECT_EQ(storage_->take_notices().size(), 2U);  // no rings, and no direct I/O
    storage_->remove(Strings{"x"});
  }
}

TEST_P(ThreadFaults, EachTransferFailsOnce) {
  for (const auto& [error, code] : {std::pair(EIO, ErrorCode::kIo), std::pair(ENOSPC, ErrorCode::kNoSpace)}) {
    for (int number = 0; number < 18; ++number) {
      expect_failure(
          code,
          [&, failing = error] {
            sys_->direct_error = [number, failing, calls = 0]() mutable { return calls++ == number ? failing : 0; };
          },
          [&] { sys_->direct_error = [] { return 0; }; });
      ASSERT_FALSE(HasFailure()) << number;
    }
  }
}

// More threads than there are bounce buffers, each with more pieces than there are.
TEST(BounceBuffers, AreSharedWithoutADeadlock) {
  for (const bool has_rings : {true, false}) {
    const TemporaryFolder folder;
    const auto sys = std::make_shared<PretendSys>();
    if (!has_rings) sys->error = [](std::string_view call) { return call == "make_ring" ? EPERM : 0; };
    FsTuning tuning;
    tuning.ring = tuning.thread = {128 << 10, 128 << 10};
    const auto storage = make_fs_storage(folder.path().native(), sys, tuning);
    constexpr std::size_t kBlock = 2 << 20;
    constexpr std::size_t kThreads = 12;
    const std::string content = random_text(kBlock * kThreads, 5);
    const auto for_each_block = [&](auto action) {
      std::vector<std::jthread> threads;
      for (std::size_t t = 0; t < kThreads; ++t) {
        threads.emplace_back([&, t] {
          std::vector<std::byte> memory(kBlock + 4096);
          const auto address = std::bit_cast<std::uintptr_t>(memory.data());
          action(t * kBlock, std::span(memory).subspan(4096 - address % 4096 - 1, kBlock));
        });
      }
    };
    const auto writer = storage->create("x", content.size(), {});
    for_each_block([&](std::size_t offset, std::span<std::byte> memory) {
      std::copy_n(bytes_of(content).begin() + static_cast<std::ptrdiff_t>(offset), kBlock, memory.begin());
      writer->write(offset, memory);
    });
    writer->finish();
    const auto reader = storage->open("x", {});
    for_each_block([&](std::size_t offset, std::span<std::byte> memory) {
      reader->read(offset, memory);
      EXPECT_TRUE(std::ranges::equal(memory, bytes_of(content).subspan(offset, kBlock)));
    });
    EXPECT_EQ(sys->buffered_transfers, 0);
  }
}

}  // namespace
}  // namespace torchsnapshot
