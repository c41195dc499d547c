#include "manifest/metadata_seal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "manifest/primitive.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using testing::HasSubstr;

SnapshotMetadata sample() {
  SnapshotMetadata metadata{"1.2.3", 1, {}};
  metadata.manifest.add("0/state", DictEntry{{Key("step"), Key("w")}, false});
  metadata.manifest.add("0/state/step", make_primitive_entry(Integer(7), false));
  metadata.manifest.add("0/state/w", TensorEntry{.location = "data/0123456789abcdef0123456789abcdef/0-0",
                                                 .serializer = std::string(kBufferProtocol),
                                                 .dtype = DType::kFloat32,
                                                 .shape = {2},
                                                 .byte_range = ByteRange{0, 8}});
  return metadata;
}

TEST(MetadataSeal, IsWrittenIntoTheVersionAndTakenOffAgain) {
  const std::string text = write_sealed_metadata(sample());
  EXPECT_THAT(nlohmann::json::parse(text)["version"].get<std::string>(), testing::StartsWith("1.2.3+crc32c."));
  const SnapshotMetadata read = parse_sealed_metadata(text);
  EXPECT_EQ(read.version, "1.2.3");
  EXPECT_EQ(read.manifest, sample().manifest);
}

// A flipped bit may make the text unreadable as well; it must never pass.
TEST(MetadataSeal, EveryFlippedBitAndEveryCutIsFound) {
  SnapshotMetadata without_objects{"1.2.3", 1, {}};
  without_objects.manifest.add("0/state", DictEntry{{Key("step")}, false});
  without_objects.manifest.add("0/state/step", make_primitive_entry(Integer(7), false));
  for (const std::string& text : {write_sealed_metadata(sample()), write_sealed_metadata(without_objects)}) {
    for (std::size_t bit = 0; bit < 8 * text.size(); ++bit) {
      std::string flipped = text;
      flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
      EXPECT_THROW(parse_sealed_metadata(flipped), Error) << bit;
    }
    for (std::size_t size = 0; size < text.size(); ++size) {
      EXPECT_THROW(parse_sealed_metadata(text.substr(0, size)), Error) << size;
    }
  }
}

TEST(MetadataSeal, SaysWhatItFound) {
  std::string text = write_sealed_metadata(sample());
  text[text.find("\"7\"") + 1] = '8';
  try {
    parse_sealed_metadata(text);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
    EXPECT_THAT(error.what(), HasSubstr("expected 0x"));
  }
  EXPECT_EQ(parse_sealed_metadata(text, false).version, "1.2.3");
}

TEST(MetadataSeal, MetadataOfOthersNeedsNone) {
  SnapshotMetadata other{"0.1.0", 1, {}};
  other.manifest.add("0/state", DictEntry{{}, false});
  EXPECT_EQ(parse_sealed_metadata(write_metadata(other)).version, "0.1.0");
  EXPECT_THROW(parse_sealed_metadata(write_metadata(sample())), Error) << "our objects, and no seal";
}

}  // namespace
}  // namespace torchsnapshot
