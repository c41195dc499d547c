#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "pipeline/checksum_store.h"
#include "pipeline/read_pipeline.h"
#include "pipeline/testing_faulty.h"
#include "pipeline/write_pipeline.h"
#include "tensor/device_copy.h"
#include "tensor/strided_copy.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using testing::AnyOf;
using testing::HasSubstr;

std::shared_ptr<Storage> fresh_storage() {
  static std::atomic<int> count{0};
  return open_memory_storage("pipeline-test-" + std::to_string(count++));
}

std::vector<std::byte> pattern(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i + 4 <= size; i += 4) {
    const auto word = static_cast<std::uint32_t>(random());
    std::memcpy(bytes.data() + i, &word, 4);
  }
  return bytes;
}

/// A dense matrix of floats over `memory`, transposed if asked.
TensorView matrix(std::vector<std::byte>& memory, std::int64_t columns, bool transposed) {
  const auto rows = static_cast<std::int64_t>(memory.size()) / 4 / columns;
  TensorView view = TensorView::dense(memory.data(), DType::kFloat32, {rows, columns});
  if (transposed) {
    std::swap(view.shape[0], view.shape[1]);
    std::swap(view.strides[0], view.strides[1]);
  }
  return view;
}

std::vector<std::byte> dense_of(const TensorView& view) {
  std::vector<std::byte> bytes(view.nbytes());
  gather(view, 0, bytes);
  return bytes;
}

WriteItem item(const TensorView& view, std::uint64_t offset) {
  return {.path = "key/w" + std::to_string(offset), .source = view, .offset = offset, .size = view.nbytes()};
}

ShardEntry entry(const std::string& location, const TensorView& view, std::uint64_t offset) {
  return {.box = Box::whole(view.shape),
          .tensor = {.location = location,
                     .serializer = std::string(kBufferProtocol),
                     .dtype = view.dtype,
                     .shape = view.shape,
                     .replicated = false,
                     .byte_range = ByteRange{offset, offset + view.nbytes()}}};
}

constexpr const char* kTakeId = "0123456789abcdef0123456789abcdef";

std::string object_name(int number) {
  return "data/" + std::string(kTakeId) + "/0-" + std::to_string(number);
}

/// Three tensors of 20 MB, 3 MB (transposed) and 40 bytes in one object, one in another, and an empty object.
struct Sample {
  std::vector<std::byte> large = pattern(20'000'000, 1);
  std::vector<std::byte> medium = pattern(3'000'000, 2);
  std::vector<std::byte> small = pattern(40, 3);
  std::vector<TensorView> views{matrix(large, 1000, false), matrix(medium, 500, true), matrix(small, 10, false),
                                matrix(large, 100, true)};
  WritePlan plan;

  Sample() {
    WriteObject first{.location = object_name(0), .size = 0, .items = {}};
    std::uint64_t offset = 0;
    for (int i = 0; i < 3; ++i) {
      offset += 100;
      first.items.push_back(item(views[static_cast<std::size_t>(i)], offset));
      offset += views[static_cast<std::size_t>(i)].nbytes();
    }
    first.size = offset;
    plan.objects.push_back(std::move(first));
    plan.objects.push_back({.location = object_name(1), .size = views[3].nbytes(), .items = {item(views[3], 0)}});
    plan.objects.push_back({.location = object_name(2), .size = 0, .items = {}});
  }

  [[nodiscard]] std::vector<ShardEntry> entries() const {
    std::vector<ShardEntry> entries;
    for (std::size_t i = 0; i < 3; ++i)
      entries.push_back(entry(object_name(0), views[i], plan.objects[0].items[i].offset));
    entries.push_back(entry(object_name(1), views[3], 0));
    return entries;
  }
};

/// Targets for the sample's tensors: contiguous ones, or transposed in memory.
struct Targets {
  std::vector<std::vector<std::byte>> memory;
  std::vector<TensorView> views;

  Targets(const Sample& sample, bool transposed) {
    for (const TensorView& view : sample.views) {
      memory.emplace_back(view.nbytes());
      TensorView target = TensorView::dense(memory.back().data(), view.dtype, view.shape);
      if (transposed) {
        target = TensorView::dense(memory.back().data(), view.dtype, {view.shape[1], view.shape[0]});
        std::swap(target.shape[0], target.shape[1]);
        std::swap(target.strides[0], target.strides[1]);
      }
      views.push_back(target);
    }
  }

  [[nodiscard]] ReadPlan plan(const Sample& sample) const {
    ReadPlanner planner;
    const auto entries = sample.entries();
    for (std::size_t i = 0; i < views.size(); ++i) {
      planner.add("key/w" + std::to_string(i), {entries[i]}, Box::whole(views[i].shape), views[i]);
    }
    return planner.build();
  }

  [[nodiscard]] std::uint64_t bytes() const {
    std::uint64_t total = 0;
    for (const auto& part : memory) total += part.size();
    return total;
  }
};

/// Writes, and puts the checksums where they belong.
void run_writes(const WritePlan& plan, Storage& storage, const IoOptions& options = {},
                Staging staging = Staging::kWhereNeeded) {
  WritePipeline pipeline(plan, storage, options, staging);
  if (staging == Staging::kEverything) pipeline.stage();
  const ChecksumTables tables = pipeline.finish();
  if (!tables.empty()) storage.publish(checksum_location(kTakeId, 0), serialize_checksums(tables));
}

/// Reads with verification. What is corrupt is an error, or goes to `corrupt` if that is not null.
void read(const ReadPlan& plan, Storage& storage, const IoOptions& options = {}, std::uint64_t total = 0,
          std::vector<Corruption>* corrupt = nullptr) {
  ProgressMeter meter(total, options.on_progress);
  ChecksumStore checksums;
  std::vector<std::string> objects;
  for (const ObjectRead& object : plan.objects) objects.push_back(object.location);
  checksums.load(objects, storage, options);
  CorruptionLog log(corrupt != nullptr);
  run_reads(plan, {storage, options, {}, options.checksums ? &checksums : nullptr, log, meter});
  meter.finish();
  if (corrupt != nullptr) *corrupt = log.take();
}

TEST(Pipeline, ReadsBackWhatItWrote) {
  for (const Staging staging : {Staging::kWhereNeeded, Staging::kEverything}) {
    for (const bool checksums : {false, true}) {
      for (const bool transposed : {false, true}) {
        IoOptions options;
        options.checksums = checksums;
        const Sample sample;
        const auto storage = fresh_storage();
        run_writes(sample.plan, *storage, options, staging);
        Targets targets(sample, transposed);
        read(targets.plan(sample), *storage, options);
        for (std::size_t i = 0; i < targets.views.size(); ++i) {
          EXPECT_EQ(dense_of(targets.views[i]), dense_of(sample.views[i])) << i;
        }
        EXPECT_EQ(storage->list("data/").size(), 3U);  // the empty object too
        EXPECT_EQ(storage->list(".torchsnapshot/").size(), checksums ? 1U : 0U);
      }
    }
  }
}

TEST(Pipeline, WhatIsStagedMayChange) {
  Sample sample;
  std::vector<std::vector<std::byte>> before;
  for (const TensorView& view : sample.views) before.push_back(dense_of(view));
  const auto storage = fresh_storage();
  IoOptions options;
  options.memory_budget_bytes = 16 << 20;  // less than the state: some of it is written while the rest is staged
  WritePipeline pipeline(sample.plan, *storage, options, Staging::kEverything);
  pipeline.stage();
  for (auto* memory : {&sample.large, &sample.medium, &sample.small}) {
    std::fill(memory->begin(), memory->end(), std::byte{0xAA});
  }
  const ChecksumTables tables = pipeline.finish();
  storage->publish(checksum_location(kTakeId, 0), serialize_checksums(tables));
  Targets targets(sample, false);
  read(targets.plan(sample), *storage);
  for (std::size_t i = 0; i < targets.views.size(); ++i) EXPECT_EQ(dense_of(targets.views[i]), before[i]) << i;
}

/// Changes one bit of an object of a memory storage.
void flip(Storage& storage, const std::string& location, std::size_t at) {
  std::string content = storage.read_all(location, UINT64_MAX, {});
  content[at] = static_cast<char>(content[at] ^ 4);
  storage.publish(location, content);
}

std::string error_of(const std::function<void()>& action);

TEST(Pipeline, FlippedBitsAreFoundAndNamed) {
  const Sample sample;
  for (const bool transposed : {false, true}) {
    for (unsigned seed = 0; seed < 20; ++seed) {
      std::mt19937 random(seed);
      const auto storage = fresh_storage();
      run_writes(sample.plan, *storage);
      const std::size_t victim = seed % 4;
      const WriteItem& item = victim == 3 ? sample.plan.objects[1].items[0] : sample.plan.objects[0].items[victim];
      flip(*storage, object_name(victim == 3 ? 1 : 0), item.offset + random() % item.size);
      Targets targets(sample, transposed);
      const std::string error = error_of([&] { read(targets.plan(sample), *storage); });
      EXPECT_THAT(error, testing::AllOf(HasSubstr("CORRUPT"), HasSubstr("'key/w" + std::to_string(victim) + "'"),
                                        HasSubstr("0123456789abcdef"), HasSubstr("expected 0x")));
      std::vector<Corruption> corrupt;
      read(targets.plan(sample), *storage, {}, 0, &corrupt);
      ASSERT_EQ(corrupt.size(), 1U);
      EXPECT_THAT(corrupt[0].paths, testing::Contains("key/w" + std::to_string(victim)));
      for (std::size_t i = 0; i < targets.views.size(); ++i) {
        if (testing::Value(corrupt[0].paths, testing::Contains("key/w" + std::to_string(i)))) continue;
        EXPECT_EQ(dense_of(targets.views[i]), dense_of(sample.views[i])) << "the others are whole";
      }
      IoOptions unverified;
      unverified.checksums = false;
      read(targets.plan(sample), *storage, unverified);
    }
  }
}

TEST(Pipeline, WithoutItsChecksumsASnapshotIsReadWithANotice) {
  const Sample sample;
  const auto storage = fresh_storage();
  run_writes(sample.plan, *storage);
  storage->remove(std::vector<std::string>{checksum_location(kTakeId, 0)});
  std::vector<std::string> notices;
  IoOptions options;
  options.on_notice = [&](const std::string& notice) { notices.push_back(notice); };
  Targets targets(sample, false);
  read(targets.plan(sample), *storage, options);
  EXPECT_EQ(dense_of(targets.views[0]), dense_of(sample.views[0]));
  ASSERT_EQ(notices.size(), 1U);
  EXPECT_THAT(notices[0], HasSubstr("can't be verified"));
}

TEST(Pipeline, DamagedChecksumsAreAnError) {
  const Sample sample;
  const auto storage = fresh_storage();
  run_writes(sample.plan, *storage);
  const std::string whole = storage->read_all(checksum_location(kTakeId, 0), UINT64_MAX, {});
  Targets targets(sample, false);
  for (std::size_t at = 0; at < whole.size(); ++at) {
    flip(*storage, checksum_location(kTakeId, 0), at);
    EXPECT_THAT(error_of([&] { read(targets.plan(sample), *storage); }), HasSubstr("checksums-0")) << at;
    storage->publish(checksum_location(kTakeId, 0), whole);
  }
}

TEST(ChecksumStore, KnowsTheObjectsOfOurTakes) {
  EXPECT_EQ(checksum_location_of(object_name(7)), checksum_location(kTakeId, 0));
  EXPECT_EQ(checksum_location_of("data/" + std::string(kTakeId) + "/12-3"), checksum_location(kTakeId, 12));
  for (const std::string other :
       {"0/model/weight", "data/0123/0-0", "batched/0123456789abcdef0123456789abcdef", "data/x"}) {
    EXPECT_EQ(checksum_location_of(other), std::nullopt) << other;
  }
  EXPECT_EQ(checksum_location_of("data/" + std::string(kTakeId) + "/a-3"), std::nullopt);
  EXPECT_EQ(checksum_location_of("data/" + std::string(kTakeId) + "/1-"), std::nullopt);
}

TEST(Pipeline, WorksWithinABudgetSmallerThanABlock) {
  const Sample sample;
  const auto storage = fresh_storage();
  IoOptions options;
  options.memory_budget_bytes = 1;
  options.io_concurrency = 3;
  run_writes(sample.plan, *storage, options);
  Targets targets(sample, true);
  read(targets.plan(sample), *storage, options);
  EXPECT_EQ(dense_of(targets.views[0]), dense_of(sample.views[0]));
}

TEST(Pipeline, TellsProgressToTheEnd) {
  const Sample sample;
  const auto storage = fresh_storage();
  IoOptions options;
  Progress last;
  std::uint64_t calls = 0;
  options.on_progress = [&](const Progress& progress) {
    EXPECT_GE(progress.bytes_done, last.bytes_done);
    last = progress;
    ++calls;
  };
  run_writes(sample.plan, *storage, options);
  EXPECT_EQ(last.bytes_done, last.bytes_total);
  EXPECT_EQ(last.bytes_total, sample.plan.objects[0].size + sample.plan.objects[1].size);
  EXPECT_GE(calls, 1U);
  last = {};
  Targets targets(sample, false);
  read(targets.plan(sample), *storage, options, targets.bytes());
  EXPECT_EQ(last.bytes_done, last.bytes_total);
}

TEST(Pipeline, BlobsComeInTheOrderAsked) {
  const auto storage = fresh_storage();
  storage->publish("a", "alpha");
  storage->publish("b", "beta");
  const std::vector<BlobRead> blobs = {{.path = "x", .location = "b", .range = std::nullopt},
                                       {.path = "y", .location = "a", .range = ByteRange{1, 3}},
                                       {.path = "z", .location = "a", .range = std::nullopt}};
  IoOptions options;
  ProgressMeter meter(0, options.on_progress);
  CorruptionLog log(false);
  const ObjectSizes sizes{{"a", 5}};  // that of "b" is not known
  const auto bytes = run_blob_reads(blobs, {*storage, options, sizes, nullptr, log, meter});
  ASSERT_EQ(bytes.size(), 3U);
  EXPECT_EQ(bytes[0]->view(), "beta");
  EXPECT_EQ(bytes[1]->view(), "lp");
  EXPECT_EQ(bytes[2]->view(), "alpha");
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return std::string(to_string(error.code())) + " " + error.what();
  }
  return "no error";
}

TEST(Pipeline, ObjectsAreLookedAtBeforeAnythingIsRead) {
  const Sample sample;
  const auto storage = fresh_storage();
  run_writes(sample.plan, *storage, {});
  ReadPlanner planner;
  for (std::size_t i = 0; i < 4; ++i) {
    const ShardEntry piece = sample.entries()[i];
    planner.require("key/w" + std::to_string(i), {piece}, piece.box);
  }
  const auto sizes = check_objects(planner.needs(), nullptr, *storage, {});
  EXPECT_EQ(sizes.at(object_name(0)), sample.plan.objects[0].size);

  const std::string whole = storage->read_all(object_name(0), UINT64_MAX, {});
  storage->publish(object_name(0), whole.substr(0, whole.size() - 1));
  const auto check = [&] { return error_of([&] { check_objects(planner.needs(), nullptr, *storage, {}); }); };
  EXPECT_THAT(check(), testing::AllOf(HasSubstr("CORRUPT"), HasSubstr("'key/w2'"), HasSubstr(object_name(0)),
                                      HasSubstr("truncated")));
  storage->remove(std::vector<std::string>{object_name(0)});
  EXPECT_THAT(check(), testing::AllOf(HasSubstr("NOT_FOUND"), HasSubstr("'key/w2'"), HasSubstr(object_name(0))));
}

TEST(Pipeline, AnEntryThatIsAWholeObjectFixesItsSize) {
  const auto storage = fresh_storage();
  storage->publish("x", "12345");
  const ShardEntry piece{.box = Box::whole({3}),
                         .tensor = {.location = "x",
                                    .serializer = std::string(kBufferProtocol),
                                    .dtype = DType::kBFloat16,
                                    .shape = {3},
                                    .replicated = false,
                                    .byte_range = std::nullopt}};
  ReadPlanner planner;
  planner.require("key/w", {piece}, piece.box);
  const auto check = [&] { return error_of([&] { check_objects(planner.needs(), nullptr, *storage, {}); }); };
  EXPECT_THAT(check(), HasSubstr("exactly 6"));
  storage->publish("x", "1234");
  EXPECT_THAT(check(), HasSubstr("odd number of elements"));
  storage->publish("x", "1234567");
  EXPECT_THAT(check(), HasSubstr("exactly 6"));
  storage->publish("x", "123456");
  EXPECT_EQ(check(), "no error");
}

TEST(Pipeline, EveryFailingCallEndsTheWorkWithItsError) {
  const Sample sample;
  for (std::int64_t fail_at = 0;; ++fail_at) {
    FaultyStorage storage(fresh_storage(), fail_at);
    const std::string error = error_of([&] { run_writes(sample.plan, storage, {}); });
    if (storage.calls() <= fail_at) {
      EXPECT_EQ(error, "no error");
      EXPECT_GE(fail_at, 12);
      break;
    }
    EXPECT_THAT(error, HasSubstr("injected")) << fail_at;
    EXPECT_THAT(error, AnyOf(HasSubstr("writing "), HasSubstr("publish"))) << fail_at;
  }
  const auto written = fresh_storage();
  run_writes(sample.plan, *written, {});
  for (std::int64_t fail_at = 0;; ++fail_at) {
    FaultyStorage storage(written, fail_at);
    Targets targets(sample, true);
    const std::string error = error_of([&] { read(targets.plan(sample), storage); });
    if (storage.calls() <= fail_at) {
      EXPECT_EQ(error, "no error");
      EXPECT_GT(fail_at, 5);
      break;
    }
    EXPECT_THAT(error, HasSubstr("injected")) << fail_at;
  }
}

TEST(Pipeline, StopsWhenAskedTo) {
  const Sample sample;
  std::stop_source stop;
  stop.request_stop();
  IoOptions options;
  options.stop = stop.get_token();
  EXPECT_THAT(error_of([&] { run_writes(sample.plan, *fresh_storage(), options); }), HasSubstr("CANCELLED"));
}

/// A "device" whose memory is the host's, byte-wise inverted: what forgets to go through the copier shows.
class InvertingDevice final : public DeviceCopier {
 public:
  void to_host(const TensorView& view, std::uint64_t begin, std::span<std::byte> out) override {
    gather(on_host(view), begin, out);
    for (std::byte& byte : out) byte = ~byte;
    ++copies;
  }
  void to_device(std::span<const std::byte> in, std::uint64_t begin, const TensorView& view) override {
    std::vector<std::byte> inverted(in.begin(), in.end());
    for (std::byte& byte : inverted) byte = ~byte;
    const TensorView host = on_host(view);
    scatter(inverted, begin, host.shape, Box::whole(host.shape), host);
    ++copies;
  }
  std::atomic<int> copies{0};

 private:
  static TensorView on_host(TensorView view) {
    view.device = DeviceType::kCpu;
    return view;
  }
};

TEST(Pipeline, DeviceTensorsGoThroughTheCopier) {
  const auto device = std::make_shared<InvertingDevice>();
  set_device_copier(device);
  Sample sample;
  for (WriteObject& object : sample.plan.objects) {
    for (WriteItem& written : object.items) std::get<TensorView>(written.source).device = DeviceType::kOther;
  }
  const auto storage = fresh_storage();
  run_writes(sample.plan, *storage, {});
  Targets targets(sample, true);
  for (TensorView& view : targets.views) view.device = DeviceType::kOther;
  read(targets.plan(sample), *storage);
  set_device_copier(nullptr);
  EXPECT_GT(device->copies, 8);
  for (std::size_t i = 0; i < targets.views.size(); ++i) {
    TensorView view = targets.views[i];
    view.device = DeviceType::kCpu;
    EXPECT_EQ(dense_of(view), dense_of(sample.views[i])) << i;
  }
}

}  // namespace
}  // namespace torchsnapshot
