// The power fails at every step of a take, on each way that data takes to the disk. What is found afterwards is the old
// snapshot, or the new one, whole; or, where there was none before, perhaps none.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "storage/fs_storage.h"
#include "storage/testing.h"
#include "storage/testing_power_cut.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {
namespace {

/// Tensors large and small, and an object, whose content tells the seed.
struct State {
  std::vector<std::vector<float>> tensors;
  AppState app;

  explicit State(int seed) {
    Dict dict;
    for (const std::size_t size : {40'000U, 20'000U, 10U, 3U}) {
      tensors.emplace_back(size);
      for (std::size_t i = 0; i < size; ++i) tensors.back()[i] = static_cast<float>(static_cast<int>(i % 1000) + seed);
    }
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      dict.items.emplace_back(
          "t" + std::to_string(i),
          TensorView::dense(tensors[i].data(), DType::kFloat32, {static_cast<std::int64_t>(tensors[i].size())}));
    }
    dict.items.emplace_back("step", Integer(seed));
    dict.items.emplace_back("object", Opaque{.serializer = "torch_save",
                                             .type_name = "builtins.tuple",
                                             .bytes = SharedBytes::copy_of("pickled" + std::to_string(seed))});
    app.emplace_back("state", std::move(dict));
  }
};

/// The seed of the snapshot at that place, which must be whole; nothing when there is none.
std::optional<int> seed_at(const std::filesystem::path& path) {
  State found(-1);
  try {
    Snapshot(path.native()).restore(found.app);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kNotASnapshot) << error.what();
    EXPECT_THAT(error.what(), testing::HasSubstr("No such file")) << "metadata that is there must be whole";
    return std::nullopt;
  }
  const auto* dict = found.app[0].second.get_if<Dict>();
  const int seed = std::stoi(dict->find("step")->get_if<Integer>()->decimal);
  const State expected(seed);
  EXPECT_EQ(found.tensors, expected.tensors);
  EXPECT_EQ(dict->find("object")->get_if<Opaque>()->bytes.view(), "pickled" + std::to_string(seed));
  return seed;
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
  const State before(1);
  const State after(2);
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
      const std::optional<int> seed = seed_at(restart.path() / "snapshot");
      if (!seed) {
        EXPECT_FALSE(overwrite) << "the old snapshot is gone, power " << power;
        EXPECT_FALSE(is_taken) << "what take returned from is gone, power " << power;
        ++cuts.none;
      } else {
        EXPECT_TRUE(*seed == 2 || (overwrite && !is_taken)) << "power " << power << ", seed " << *seed;
        ++(*seed == 2 ? cuts.fresh : cuts.old);
      }
    }
    if (!was_cut) return cuts;
  }
}

class PowerCut : public testing::TestWithParam<IoMode> {};

TEST_P(PowerCut, OfAFirstTake) {
  const Cuts cuts = cut_everywhere(GetParam(), false, false);
  EXPECT_GT(cuts.none, 50);
  EXPECT_GT(cuts.fresh, 5);
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
