#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "snapshot/stored_tensor.h"
#include "snapshot/testing_inspect.h"
#include "storage/testing.h"
#include "torchsnapshot/inspect.h"

namespace torchsnapshot {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

Snapshot take(const AppState& app, const TakeOptions& options = {}) {
  return Snapshot::take(new_memory_storage(), app, options);
}

TEST(Diff, EqualSnapshotsHoweverTheyAreStored) {
  SmallState state;
  const Snapshot a = take(state.app());
  TakeOptions chunked;
  chunked.max_chunk_bytes = 300;
  chunked.batching = false;
  const Snapshot b = take(state.app(), chunked);
  const DiffReport report = diff(a, b);
  EXPECT_THAT(report.differences, IsEmpty());
  EXPECT_EQ(report.entries, 4U);
  EXPECT_EQ(report.bytes, 600U * 4 + 3 * 8 + 7);
}

TEST(Diff, EveryKindOfDifference) {
  SmallState state;
  const Snapshot a = take(state.app());
  state.weight[7] += 1;
  state.weight[599] -= 2;
  state.object = "PICKLED";
  AppState app = state.app();
  auto& progress = *app[1].second.get_if<Dict>();
  *progress.find("loss") = std::string("text");
  progress.items[0].second = TensorView::dense(state.steps.data(), DType::kInt64, {1, 3});
  progress.items.emplace_back("new", Integer(5));
  const DiffReport report = diff(a, take(app));
  std::map<std::string, DifferenceKind> kinds;
  for (const Difference& difference : report.differences) kinds.emplace(difference.path, difference.kind);
  const std::map<std::string, DifferenceKind> expected{
      {"0/model/w", DifferenceKind::kValue},         {"0/progress", DifferenceKind::kKeys},
      {"0/progress/loss", DifferenceKind::kType},    {"0/progress/new", DifferenceKind::kOnlyInB},
      {"0/progress/object", DifferenceKind::kValue}, {"0/progress/steps", DifferenceKind::kShape}};
  EXPECT_EQ(kinds, expected);
  for (const Difference& difference : report.differences) {
    if (difference.path != "0/model/w") continue;
    EXPECT_EQ(difference.elements, 600U);
    EXPECT_EQ(difference.differing, 2U);
    EXPECT_EQ(difference.first_differing, 7U);
    EXPECT_EQ(difference.max_absolute, 2.0);
    EXPECT_NEAR(difference.max_relative, 1.0 / 9, 1e-9);
  }
  EXPECT_EQ(diff(take(app), a).differences.size(), 6U);  // the other way round as well
}

TEST(Diff, ToleranceIsForFloatsOnly) {
  SmallState state;
  const Snapshot a = take(state.app());
  state.weight[0] *= 1.001F;
  state.weight[1] = std::numeric_limits<float>::quiet_NaN();
  state.loss *= 1.001;
  SmallState other = state;
  other.weight[0] /= 1.0005F;
  other.weight[1] = -std::numeric_limits<float>::quiet_NaN();  // other bits
  other.loss /= 1.0005;
  const Snapshot b = take(state.app());
  const Snapshot c = take(other.app());
  DiffOptions close;
  close.tolerance = {.rtol = 0.01, .atol = 0};
  EXPECT_EQ(diff(b, c).differences.size(), 2U);
  EXPECT_THAT(diff(b, c, close).differences, IsEmpty());
  close.tolerance = {.rtol = 0.0001, .atol = 0};
  EXPECT_EQ(diff(b, c, close).differences.size(), 2U);
  close.tolerance = {.rtol = 0, .atol = 0.01};
  EXPECT_THAT(diff(b, c, close).differences, IsEmpty());
  // A NaN is close to no number, and integers are compared exactly.
  close.tolerance = {.rtol = 1, .atol = 1e9};
  ASSERT_EQ(diff(a, b, close).differences.size(), 1U);
  EXPECT_EQ(diff(a, b, close).differences[0].differing, 1U);
  other.steps[2] += 1;
  ASSERT_EQ(diff(b, take(other.app()), close).differences.size(), 1U);
  EXPECT_EQ(diff(b, take(other.app()), close).differences[0].path, "0/progress/steps");
}

TEST(Diff, LargeTensorsTakeSeveralBatches) {
  constexpr std::int64_t kRows = 70;
  constexpr std::int64_t kColumns = 1 << 18;  // 1 MiB a row
  std::vector<float> big(kRows * kColumns, 1.0F);
  const AppState app{
      {"k", Dict{.items = {{"big", TensorView::dense(big.data(), DType::kFloat32, {kRows, kColumns})}}}}};
  const Snapshot a = take(app);
  const std::size_t at = 69 * kColumns + 12345;
  big[at] = 2;
  big[5] = 1.5;
  TakeOptions chunked;
  chunked.max_chunk_bytes = 5 << 20;
  const DiffReport report = diff(a, take(app, chunked));
  ASSERT_EQ(report.differences.size(), 1U);
  EXPECT_EQ(report.differences[0].differing, 2U);
  EXPECT_EQ(report.differences[0].first_differing, 5U);
  EXPECT_EQ(report.bytes, big.size() * 4);
  big[5] = 1;
  const DiffReport last = diff(a, take(app));
  EXPECT_EQ(last.differences.at(0).first_differing, at);
}

TEST(Diff, PatternsChoose) {
  SmallState state;
  const Snapshot a = take(state.app());
  state.weight[0] = 0;
  state.steps[0] = 0;
  const Snapshot b = take(state.app());
  DiffOptions options;
  options.patterns = {"model"};
  ASSERT_EQ(diff(a, b, options).differences.size(), 1U);
  EXPECT_EQ(diff(a, b, options).differences[0].path, "0/model/w");
  options.patterns = {"*/st?ps"};
  ASSERT_EQ(diff(a, b, options).differences.size(), 1U);
  EXPECT_EQ(diff(a, b, options).differences[0].path, "0/progress/steps");
}

TEST(Diff, AMissingObjectIsAnErrorThatNamesIt) {
  SmallState state;
  const Snapshot a = take(state.app());
  const Snapshot b = take(state.app());
  b.storage()->remove(objects_of(*b.storage()));
  expect_error(ErrorCode::kNotFound, {"0/model/w", b.storage()->url()}, [&] { diff(a, b); });
}

TEST(SlabCursor, CutsInRowMajorOrderWithoutGaps) {
  for (const Dims& shape : {Dims{}, Dims{1}, Dims{7}, Dims{3, 5}, Dims{2, 3, 4}, Dims{1, 1, 9}, Dims{4, 1, 3, 2}}) {
    for (std::uint64_t max_bytes : {1U, 4U, 8U, 12U, 20U, 48U, 1000U}) {
      const std::int64_t count = element_count(shape);
      SlabCursor slabs(DType::kFloat32, shape, max_bytes);
      std::int64_t at = 0;
      while (const auto box = slabs.next()) {
        const std::uint64_t bytes = dense_bytes(DType::kFloat32, box->sizes);
        EXPECT_TRUE(bytes <= max_bytes || bytes == 4);
        // Its first element follows the last one of the slab before.
        const Dims strides = row_major_strides(shape);
        std::int64_t first = 0;
        for (std::size_t d = 0; d < shape.size(); ++d) first += box->offsets[d] * strides[d];
        EXPECT_EQ(first, at);
        at += static_cast<std::int64_t>(bytes / 4);
      }
      EXPECT_EQ(at, count);
    }
  }
  EXPECT_FALSE(SlabCursor(DType::kInt8, {3, 0, 2}, 100).next().has_value());
}

TEST(TensorSummary, CountsWhatIsNoNumber) {
  std::vector<float> values{1, -3, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 0};
  std::vector<std::uint64_t> large{UINT64_MAX, 5};
  const Snapshot snapshot =
      take({{"k", Dict{.items = {{"f", TensorView::dense(values.data(), DType::kFloat32, {5})},
                                 {"u", TensorView::dense(large.data(), DType::kUInt64, {2, 1})},
                                 {"empty", TensorView::dense(nullptr, DType::kFloat32, {0, 3})}}}}});
  const TensorSummary summary = summarize_tensor(snapshot, "k/f", 2);
  EXPECT_EQ(std::get<double>(*summary.minimum), -3);
  EXPECT_EQ(std::get<double>(*summary.maximum), 1);
  EXPECT_NEAR(std::get<double>(*summary.mean), -2.0 / 3, 1e-12);
  EXPECT_EQ(summary.nans, 1U);
  EXPECT_EQ(summary.infinities, 1U);
  EXPECT_EQ(summary.zeros, 1U);
  EXPECT_EQ(summary.first.size(), 2U);
  EXPECT_EQ(std::get<std::uint64_t>(*summarize_tensor(snapshot, "0/k/u").maximum), UINT64_MAX);
  const TensorSummary empty = summarize_tensor(snapshot, "0/k/empty");
  EXPECT_FALSE(empty.minimum.has_value());
  EXPECT_EQ(empty.elements, 0U);
  expect_error(ErrorCode::kEntryNotFound, {"k/ff", "did you mean", "k/f"}, [&] { summarize_tensor(snapshot, "k/ff"); });
  expect_error(ErrorCode::kInvalidArgument, {"0/k", "dict"}, [&] { summarize_tensor(snapshot, "0/k"); });
}

}  // namespace
}  // namespace torchsnapshot
