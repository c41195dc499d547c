#include "manifest/compact_part.h"

#include <gtest/gtest.h>

#include "manifest/rank_view.h"
#include "manifest/test_support.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::string_view kTake = "0123456789abcdef0123456789abcdef";

/// Random entries of rank 3; some of them lie where takes put them.
Manifest random_part(test::RandomMetadata& random) {
  Manifest part;
  const auto locate = [&random](TensorEntry& tensor) {
    if (random.flip()) {
      tensor.location = "data/" + std::string(kTake) + "/" + std::to_string(random.number(5)) + "-" +
                        std::to_string(random.number(9));
    }
  };
  for (const auto& [path, entry] : random.make(static_cast<std::size_t>(random.number(30))).manifest) {
    Entry own = entry;
    if (auto* tensor = std::get_if<TensorEntry>(&own)) locate(*tensor);
    if (auto* sharded = std::get_if<ShardedTensorEntry>(&own)) {
      for (ShardEntry& shard : sharded->shards) locate(shard.tensor);
    }
    part.add("3/" + std::string(split_rank(path).second), std::move(own));
  }
  return part;
}

TEST(CompactPart, EntriesSurviveTheWay) {
  test::RandomMetadata random(1);
  for (int round = 0; round < 500; ++round) {
    const Manifest part = random_part(random);
    const CompactPart packed = encode_part(part, 3, kTake);
    Manifest back;
    decode_part(packed, 3, kTake, back);
    EXPECT_EQ(back, part);
    EXPECT_EQ(encode_part(back, 3, kTake), packed);
  }
}

TEST(CompactPart, DamagedBytesAreAnErrorOrEntries) {
  test::RandomMetadata random(2);
  int errors = 0;
  for (int round = 0; round < 3000; ++round) {
    CompactPart packed = encode_part(random_part(random), 3, kTake);
    std::string& stream = random.flip() ? packed.form : random.flip() ? packed.places : packed.values;
    if (stream.empty()) continue;
    const auto at = static_cast<std::size_t>(random.number(static_cast<std::int64_t>(stream.size())));
    if (random.flip()) {
      stream.resize(at);
    } else {
      stream[at] = static_cast<char>(random.number(256));
    }
    Manifest out;
    try {
      decode_part(packed, 3, kTake, out);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
      ++errors;
    }
  }
  EXPECT_GT(errors, 1000);
}

Manifest shards_of(std::int64_t rank, std::int64_t rows, std::string_view take, std::int64_t step) {
  Manifest part;
  const std::string prefix = std::to_string(rank) + "/m";
  part.add(prefix, DictEntry{{Key("w"), Key("v"), Key("step")}, false});
  const std::string location = "data/" + std::string(take) + "/" + std::to_string(rank) + "-0";
  for (const char* name : {"w", "v"}) {
    TensorEntry tensor{location, std::string(kBufferProtocol), DType::kFloat32, {rows, 8}, false, ByteRange{0, 64}};
    part.add(prefix + "/" + name, ShardedTensorEntry{{{Box{{(rank + 1) * rows, 0}, {rows, 8}}, tensor}}, {}});
  }
  part.add(prefix + "/step", PrimitiveEntry{PrimitiveType::kInt, std::to_string(step), std::nullopt, false});
  return part;
}

TEST(CompactPart, RanksOfOneKindHaveOneForm) {
  const std::string other(32, 'f');
  const CompactPart first = encode_part(shards_of(1, 16, kTake, 5), 1, kTake);
  const CompactPart second = encode_part(shards_of(70'000, 16, kTake, 5), 70'000, kTake);
  EXPECT_EQ(first.form, second.form);
  EXPECT_EQ(first.values, second.values);
  EXPECT_NE(first.places, second.places);
  EXPECT_LT(second.places.size(), 8U) << "both tensors lie alike";
  EXPECT_EQ(encode_part(shards_of(1, 16, other, 5), 1, other), first) << "the take is not in it";
  const CompactPart stepped = encode_part(shards_of(1, 16, kTake, 6), 1, kTake);
  EXPECT_EQ(stepped.form, first.form);
  EXPECT_NE(stepped.values, first.values);
  EXPECT_NE(encode_part(shards_of(1, 17, kTake, 5), 1, kTake).form, first.form);
}

}  // namespace
}  // namespace torchsnapshot
