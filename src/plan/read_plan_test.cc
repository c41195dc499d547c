#include "plan/read_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "tensor/strided_copy.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using testing::HasSubstr;

std::int64_t below(std::mt19937& random, std::int64_t limit) {
  return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(limit));
}

Box random_box(std::mt19937& random, const Dims& shape) {
  Box box = Box::whole(shape);
  for (std::size_t d = 0; d < shape.size(); ++d) {
    box.offsets[d] = below(random, shape[d]);
    box.sizes[d] = 1 + below(random, shape[d] - box.offsets[d]);
  }
  return box;
}

/// Cuts `box` at random into disjoint boxes that tile it.
void tile(std::mt19937& random, const Box& box, int cuts, std::vector<Box>& out) {
  if (cuts == 0 || box.sizes.empty()) {
    out.push_back(box);
    return;
  }
  const std::size_t d = random() % box.sizes.size();
  if (box.sizes[d] < 2) {
    out.push_back(box);
    return;
  }
  const std::int64_t at = 1 + below(random, box.sizes[d] - 1);
  Box left = box;
  left.sizes[d] = at;
  Box right = box;
  right.offsets[d] += at;
  right.sizes[d] -= at;
  tile(random, left, cuts - 1, out);
  tile(random, right, cuts - 1, out);
}

template <typename Visit>
void for_each_index(const Box& box, Visit visit) {
  Dims index = box.offsets;
  if (box.empty()) return;
  while (true) {
    visit(index);
    std::size_t d = index.size();
    while (d > 0) {
      --d;
      if (++index[d] < box.offsets[d] + box.sizes[d]) break;
      index[d] = box.offsets[d];
      if (d == 0) return;
    }
    if (index.empty()) return;
  }
}

bool contains(const Box& box, const Dims& index) {
  for (std::size_t d = 0; d < index.size(); ++d) {
    if (index[d] < box.offsets[d] || index[d] >= box.offsets[d] + box.sizes[d]) return false;
  }
  return true;
}

TEST(Covers, AgreesWithBruteForce) {
  int covered = 0;
  for (unsigned seed = 0; seed < 1500; ++seed) {
    std::mt19937 random(seed);
    Dims shape;
    for (auto d = random() % 4; d > 0; --d) shape.push_back(1 + below(random, 5));
    const Box box = shape.empty() ? Box{} : random_box(random, shape);
    std::vector<Box> boxes;
    if (random() % 2 == 0) {
      tile(random, Box::whole(shape), 3, boxes);
      if (random() % 2 == 0 && boxes.size() > 1) boxes.pop_back();
    } else {
      for (auto n = random() % 6; n > 0; --n) boxes.push_back(random_box(random, shape));
    }
    bool expected = true;
    for_each_index(box, [&](const Dims& index) {
      bool hit = false;
      for (const Box& candidate : boxes) hit = hit || contains(candidate, index);
      expected = expected && hit;
    });
    EXPECT_EQ(covers(boxes, box), expected) << "seed " << seed;
    covered += expected ? 1 : 0;
  }
  EXPECT_GT(covered, 300);  // both outcomes are tried
  EXPECT_LT(covered, 1400);
}

/// Any tiling of a tensor on storage, read into any other set of boxes: each element must be its own index.
TEST(ReadPlanner, ReadsAnyLayoutIntoAnyOther) {
  for (unsigned seed = 0; seed < 1000; ++seed) {
    std::mt19937 random(seed);
    Dims shape;
    for (auto d = random() % 4; d > 0; --d) shape.push_back(1 + below(random, 7));
    const Dims strides = row_major_strides(shape);
    const auto value_at = [&](const Dims& index) {
      std::int64_t value = 7;
      for (std::size_t d = 0; d < index.size(); ++d) value += index[d] * strides[d];
      return static_cast<std::int32_t>(value);
    };

    std::vector<Box> layout;
    tile(random, Box::whole(shape), static_cast<int>(random() % 4), layout);
    std::map<std::string, std::vector<std::byte>> objects;
    std::vector<ShardEntry> pieces;
    for (const Box& box : layout) {
      const std::string location = "data/" + std::to_string(random() % 3);
      std::vector<std::byte>& object = objects[location];
      object.resize(object.size() + random() % 9);
      const std::uint64_t begin = object.size();
      for_each_index(box, [&](const Dims& index) {
        const std::int32_t value = value_at(index);
        const auto* bytes = reinterpret_cast<const std::byte*>(&value);
        object.insert(object.end(), bytes, bytes + sizeof value);
      });
      pieces.push_back({.box = box,
                        .tensor = {.location = location,
                                   .serializer = std::string(kBufferProtocol),
                                   .dtype = DType::kInt32,
                                   .shape = box.sizes,
                                   .replicated = false,
                                   .byte_range = ByteRange{begin, object.size()}}});
    }

    ReadPlanner planner;
    struct Target {
      Box box;
      std::vector<std::int32_t> memory;
    };
    std::vector<Target> targets;
    for (auto n = 1 + random() % 3; n > 0; --n) {
      const Box box = shape.empty() ? Box{} : random_box(random, shape);
      targets.push_back({box, std::vector<std::int32_t>(static_cast<std::size_t>(element_count(box.sizes)), -1)});
    }
    // Now and then as a device tensor, whose reads must all be unbroken runs.
    const bool device = random() % 4 == 0;
    for (Target& target : targets) {
      TensorView view = TensorView::dense(target.memory.data(), DType::kInt32, target.box.sizes);
      if (device) view.device = DeviceType::kOther;
      planner.require("t", pieces, target.box);
      planner.add("t", pieces, target.box, view);
    }
    std::map<std::string, ObjectNeed> needs;
    for (const ObjectNeed& need : planner.needs()) {
      ASSERT_LE(need.range.end, objects.at(need.location).size());
      ASSERT_TRUE(needs.emplace(need.location, need).second);
    }
    for (const ObjectRead& object : planner.build().objects) {
      const std::vector<std::byte>& content = objects.at(object.location);
      for (const TensorRead& read : object.tensors) ASSERT_LE(read.range.end, needs.at(object.location).range.end);
      std::uint64_t last = 0;
      for (const TensorRead& read : object.tensors) {
        ASSERT_GE(read.range.begin, last) << "ascending";
        last = read.range.begin;
        if (device) {
          ASSERT_TRUE(is_unbroken(read.piece_shape, read.region));
        }
        TensorView view = read.view;
        view.device = DeviceType::kCpu;
        scatter(std::span(content).subspan(read.range.begin, read.range.size()), read.piece_begin, read.piece_shape,
                read.region, view);
      }
    }
    for (const Target& target : targets) {
      std::size_t i = 0;
      for_each_index(target.box,
                     [&](const Dims& index) { ASSERT_EQ(target.memory[i++], value_at(index)) << "seed " << seed; });
    }
  }
}

ShardEntry whole(const std::string& location, std::optional<ByteRange> range, Dims shape) {
  return {.box = Box::whole(shape),
          .tensor = {.location = location,
                     .serializer = std::string(kBufferProtocol),
                     .dtype = DType::kInt32,
                     .shape = shape,
                     .replicated = false,
                     .byte_range = range}};
}

std::string error_of(const std::vector<ShardEntry>& pieces, const Box& box) {
  ReadPlanner planner;
  try {
    planner.require("key/w", pieces, box);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(ReadPlanner, RefusesWhatTheManifestCanNotGive) {
  EXPECT_THAT(error_of({whole("data/0", ByteRange{0, 39}, {10})}, Box::whole({10})), HasSubstr("is not 40 bytes"));
  EXPECT_THAT(error_of({}, Box::whole({10})), HasSubstr("do not cover"));
  EXPECT_THAT(error_of({whole("data/0", ByteRange{0, 40}, {10})}, Box::whole({11})), HasSubstr("do not cover"));
  ShardEntry odd = whole("data/0", ByteRange{0, 18}, {10});
  odd.tensor.dtype = DType::kBFloat16;
  EXPECT_THAT(error_of({odd}, Box::whole({10})), HasSubstr("odd number of elements"));
  ShardEntry encoded = whole("data/0", std::nullopt, {10});
  encoded.tensor.serializer = kTorchSave;
  EXPECT_THAT(error_of({encoded}, Box::whole({10})), HasSubstr("serializer 'torch_save'"));
  EXPECT_EQ(error_of({whole("data/0", std::nullopt, {10})}, Box::whole({10})), "");
}

TEST(ReadPlanner, ReadsSharedMemoryOnce) {
  std::vector<std::int32_t> memory(10);
  const TensorView view = TensorView::dense(memory.data(), DType::kInt32, {10});
  ReadPlanner planner;
  planner.add("a", {whole("data/0", ByteRange{0, 40}, {10})}, Box::whole({10}), view);
  planner.add("tied", {whole("data/0", ByteRange{0, 40}, {10})}, Box::whole({10}), view);
  const ReadPlan plan = planner.build();
  ASSERT_EQ(plan.objects.size(), 1U);
  EXPECT_EQ(plan.objects[0].tensors.size(), 1U);
}

TEST(ReadPlanner, TellsWhatItNeedsOfAnObject) {
  ReadPlanner planner;
  planner.require("a", {whole("data/0", std::nullopt, {10})}, Box::whole({10}));
  planner.require("b", {whole("data/1", ByteRange{0, 40}, {10})}, Box::whole({10}));
  planner.require("c", {whole("data/1", ByteRange{80, 120}, {10})}, Box::whole({10}));
  planner.require({.path = "d", .location = "data/2", .range = std::nullopt});
  const std::vector<ObjectNeed> needs = planner.needs();
  ASSERT_EQ(needs.size(), 3U);
  EXPECT_EQ(needs[0].size, 40U);
  EXPECT_EQ(needs[1].path, "c");
  EXPECT_EQ(needs[1].range.end, 120U);
  EXPECT_EQ(needs[1].size, std::nullopt);
  EXPECT_EQ(needs[2].range.end, 0U);
}

TEST(ReadPlanner, TwoWholesOfDifferentSizesCanNotBe) {
  ReadPlanner planner;
  planner.require("a", {whole("data/0", std::nullopt, {10})}, Box::whole({10}));
  try {
    planner.require("b", {whole("data/0", std::nullopt, {11})}, Box::whole({11}));
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("'a' and 'b' are each the whole of object 'data/0'"));
  }
}

}  // namespace
}  // namespace torchsnapshot
