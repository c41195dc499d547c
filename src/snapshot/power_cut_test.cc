// The power fails at every step of a take, on each way that data takes to the disk. What is found afterwards is the old
// snapshot, or the new one, whole; or, where there was none before, perhaps none.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "snapshot/testing_state.h"
#include "storage/fs_storage.h"
#include "storage/testing.h"
#include "storage/testing_power_cut.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {
namespace {

/// The number of the snapshot at that place, which must be whole; nothing when there is none.
std::optional<int> number_at(const std::filesystem::path& path) {
  NumberedState found(-1);
  try {
    Snapshot(path.native()).restore(found.app);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kNotASnapshot) << error.what();
    EXPECT_THAT(error.what(), testing::HasSubstr("No such file")) << "metadata that is there must be whole";
    return std::nullopt;
  }
  return found.restored_number();
}

struct Cuts {
  int none = 0;
  int old = 0;
  int fresh = 0;
};

/// Cuts a take at every change it makes, and looks at what may be left.
Cuts cut_everywhere(IoMode mode, bool overwrite, bool asynchronous) {
  FsTuning tuning;
  tuning.mode = mode;
  tuning.least_object = 8192;
  tuning.least_block = 4096;
  TakeOptions options;
  options.slab_bytes = 100'000;
  const NumberedState before(1);
  const NumberedState after(2);
  Cuts cuts;
  for (std::uint64_t power = 0;; ++power) {
    const TemporaryFolder folder;
    const auto sys = std::make_shared<PowerCutSys>(folder.path());
    const auto place = [&] { return make_fs_storage(folder.path() / "snapshot", sys, tuning); };
    if (overwrite) Snapshot::take(place(), before.app, options);
    sys->cut_after(power);
    bool is_taken = false;
    try {
      if (asynchronous) {
        Snapshot::async_take(place(), after.app, options).wait();
      } else {
        Snapshot::take(place(), after.app, options);
      }
      is_taken = true;
    } catch (const Error& error) {
      EXPECT_TRUE(sys->is_cut()) << error.what();
    }
    const bool was_cut = sys->is_cut();
    const unsigned chances[] = {0, 100, 50, 20, 80};
    for (unsigned look = 0; look < std::size(chances); ++look) {
      const TemporaryFolder restart;
      sys->survivors(restart.path(), static_cast<unsigned>(power) * 10 + look, chances[look]);
      const std::optional<int> number = number_at(restart.path() / "snapshot");
      if (!number) {
        EXPECT_FALSE(overwrite) << "the old snapshot is gone, power " << power;
        EXPECT_FALSE(is_taken) << "what take returned from is gone, power " << power;
        ++cuts.none;
      } else {
        EXPECT_TRUE(*number == 2 || (overwrite && !is_taken)) << "power " << power << ", number " << *number;
        ++(*number == 2 ? cuts.fresh : cuts.old);
      }
    }
    if (!was_cut) return cuts;
  }
}

class PowerCut : public testing::TestWithParam<IoMode> {};

TEST_P(PowerCut, OfAFirstTake) {
  const Cuts cuts = cut_everywhere(GetParam(), false, false);
  EXPECT_GT(cuts.none, 50);
  EXPECT_GE(cuts.fresh, 5) << "a take that was not cut, at least";
}

TEST_P(PowerCut, OfATakeOverAnother) {
  const Cuts cuts = cut_everywhere(GetParam(), true, false);
  EXPECT_EQ(cuts.none, 0);
  EXPECT_GT(cuts.old, 50);
  EXPECT_GT(cuts.fresh, 20) << "while the old one is removed, too";
}

TEST_P(PowerCut, OfAnAsyncTake) {
  const Cuts cuts = cut_everywhere(GetParam(), true, true);
  EXPECT_EQ(cuts.none, 0);
  EXPECT_GT(cuts.old, 50);
}

INSTANTIATE_TEST_SUITE_P(Ways, PowerCut, testing::Values(IoMode::kBuffered, IoMode::kAuto),
                         [](const auto& way) { return way.param == IoMode::kBuffered ? "Buffered" : "Direct"; });

// The simulation itself: without the syncs it must lose data, or the tests above prove nothing.
TEST(PowerCutSys, LosesWhatWasNotSynced) {
  const TemporaryFolder folder;
  PowerCutSys sys(folder.path());
  const std::string path = folder.path() / "file";
  const int fd = sys.open(path.c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(sys.pwrite(fd, "hello", 5, 0), 5);
  const auto look = [&](unsigned chance) {
    const TemporaryFolder restart;
    sys.survivors(restart.path(), 1, chance);
    if (!std::filesystem::exists(restart.path() / "file")) return std::string("none");
    std::ifstream file(restart.path() / "file");
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  EXPECT_EQ(look(0), "none");
  EXPECT_EQ(look(100), "hello");
  const int root = sys.open(folder.path().c_str(), O_RDONLY | O_DIRECTORY, 0);
  sys.fsync(root);
  EXPECT_EQ(look(0), "") << "the name, not the content";
  sys.fdatasync(fd);
  EXPECT_EQ(look(0), "hello");
  sys.rename(path.c_str(), (folder.path() / "other").c_str());
  EXPECT_EQ(look(0), "hello");
  EXPECT_EQ(look(100), "none");
  sys.close(root);
  sys.close(fd);
}

}  // namespace
}  // namespace torchsnapshot
