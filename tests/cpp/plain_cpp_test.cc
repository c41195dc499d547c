// The engine as a plain C++ program uses it, without torch: snapshots of its own arrays, and single tensors out of a
// snapshot of 100,000 entries.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {
namespace {

constexpr std::int64_t kEntries = 100'000;
constexpr std::int64_t kElements = 8;

/// Array i holds i, i + 1, …
std::vector<float> make_arrays() {
  std::vector<float> values(kEntries * kElements);
  for (std::int64_t i = 0; i < kEntries * kElements; ++i) {
    values[static_cast<std::size_t>(i)] = static_cast<float>(i / kElements + i % kElements);
  }
  return values;
}

AppState state_of(std::vector<float>& values) {
  Dict arrays;
  arrays.items.reserve(kEntries);
  for (std::int64_t i = 0; i < kEntries; ++i) {
    arrays.items.emplace_back("array" + std::to_string(i),
                              TensorView::dense(values.data() + i * kElements, DType::kFloat32, {kElements}));
  }
  AppState app;
  app.emplace_back("arrays", std::move(arrays));
  return app;
}

class PlainCpp : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder() = std::filesystem::temp_directory_path() / ("torchsnapshot_plain_" + std::to_string(getpid()));
    std::vector<float> values = make_arrays();
    Snapshot::take(folder().string(), state_of(values));
  }
  static void TearDownTestSuite() { std::filesystem::remove_all(folder()); }
  static std::filesystem::path& folder() {
    static std::filesystem::path path;
    return path;
  }
};

TEST_F(PlainCpp, ReadsSingleTensorsOfManyIntoItsOwnMemory) {
  const Snapshot snapshot(folder().string());
  EXPECT_EQ(snapshot.metadata()->manifest.size(), static_cast<std::size_t>(kEntries) + 1);
  for (const std::int64_t i : {std::int64_t{0}, std::int64_t{4711}, kEntries - 1}) {
    std::vector<float> mine(kElements, -1.0F);
    std::uint64_t bytes = 0;
    ReadOptions options;
    options.io.on_progress = [&bytes](const Progress& progress) { bytes = progress.bytes_total; };
    const Value target = TensorView::dense(mine.data(), DType::kFloat32, {kElements});
    const Value read = snapshot.read_object("0/arrays/array" + std::to_string(i), &target, options);
    ASSERT_NE(read.get_if<TensorView>(), nullptr);
    EXPECT_EQ(static_cast<const void*>(read.get_if<TensorView>()->data), mine.data()) << "in place";
    for (std::int64_t k = 0; k < kElements; ++k)
      EXPECT_EQ(mine[static_cast<std::size_t>(k)], static_cast<float>(i + k));
    EXPECT_EQ(bytes, kElements * sizeof(float)) << "nothing else is read";
  }
}

TEST_F(PlainCpp, RestoresItsArraysInPlace) {
  std::vector<float> values(kEntries * kElements, 0.0F);
  AppState app = state_of(values);
  const RestoreReport report = Snapshot(folder().string()).restore(app);
  EXPECT_TRUE(report.missing.empty() && report.unexpected.empty() && report.mismatched.empty());
  EXPECT_EQ(values, make_arrays());
}

TEST_F(PlainCpp, AWrongPathNamesNearOnes) {
  try {
    (void)Snapshot(folder().string()).read_object("0/arrays/aray4711");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kEntryNotFound);
    EXPECT_NE(std::string(error.what()).find("array4711"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace torchsnapshot
