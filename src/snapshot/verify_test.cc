#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "pipeline/testing_faulty.h"
#include "snapshot/testing_inspect.h"
#include "storage/testing.h"
#include "torchsnapshot/inspect.h"

namespace torchsnapshot {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// A storage with a snapshot of one slab and one serialized object.
struct Taken {
  std::shared_ptr<Storage> storage = new_memory_storage();
  std::string slab;
  std::string object;

  Taken() {
    SmallState state;
    Snapshot::take(storage, state.app());
    for (const std::string& location : objects_of(*storage)) {
      (storage->read_all(location, 1 << 20, {}) == "pickled" ? object : slab) = location;
    }
    write_sidecar(*storage);
  }
};

TEST(Verify, AnIntactSnapshot) {
  const Taken taken;
  const VerifyReport report = verify(*taken.storage);
  EXPECT_THAT(report.findings, IsEmpty());
  EXPECT_THAT(report.unchecked, IsEmpty());
  EXPECT_EQ(report.objects, 2U);
  EXPECT_EQ(report.entries, 6U);
  EXPECT_EQ(report.bytes_read, report.object_bytes);
  EXPECT_EQ(report.bytes_verified, report.object_bytes);
  EXPECT_GT(report.object_bytes, 2400U);
}

TEST(Verify, WithoutChecksumsEverythingIsReadAndTheReportSaysSo) {
  const Taken taken;
  taken.storage->remove(taken.storage->list(".torchsnapshot/"));
  const VerifyReport report = verify(*taken.storage);
  EXPECT_THAT(report.findings, IsEmpty());
  EXPECT_EQ(report.unchecked.size(), 2U);
  EXPECT_EQ(report.bytes_read, report.object_bytes);
  EXPECT_EQ(report.bytes_verified, 0U);
}

TEST(Verify, EveryFlippedBitIsFound) {
  const Taken taken;
  std::mt19937 random(7);
  for (int i = 0; i < 200; ++i) {
    const std::string& location = i % 8 == 0 ? taken.object : taken.slab;
    const std::string before = get(*taken.storage, location);
    const std::size_t at = random() % before.size();
    change_object(*taken.storage, location, [&](std::string& content) {
      content[at] = static_cast<char>(content[at] ^ static_cast<char>(1U << random() % 8));
    });
    const VerifyReport report = verify(*taken.storage);
    ASSERT_EQ(report.findings.size(), 1U) << "byte " << at;
    const Finding& finding = report.findings[0];
    EXPECT_EQ(finding.kind, FindingKind::kWrongBytes);
    EXPECT_EQ(finding.object, location);
    ASSERT_TRUE(finding.range.has_value());
    EXPECT_LE(finding.range->begin, at);
    EXPECT_GT(finding.range->end, at);
    EXPECT_NE(finding.expected, finding.found);
    EXPECT_EQ(report.bytes_verified, report.object_bytes - finding.range->size());
    EXPECT_TRUE(verify(*taken.storage, {.io = {}, .quick = true}).findings.empty());
    taken.storage->publish(location, before);
  }
}

TEST(Verify, NamesTheEntriesThatAreHarmed) {
  const Taken taken;
  change_object(*taken.storage, taken.object, [](std::string& content) { content[0] = 'X'; });
  change_object(*taken.storage, taken.slab, [](std::string& content) { content[100] ^= 1; });
  const VerifyReport report = verify(*taken.storage);
  ASSERT_EQ(report.findings.size(), 2U);
  std::vector<std::vector<std::string>> entries;
  for (const Finding& finding : report.findings) {
    entries.push_back(finding.entries);
    EXPECT_THAT(finding.message, HasSubstr(finding.entries[0]));
    EXPECT_THAT(finding.message, HasSubstr(finding.object));
  }
  EXPECT_THAT(entries, Contains(ElementsAre("0/progress/object")));
  EXPECT_THAT(entries, Contains(ElementsAre("0/model/w")));
}

TEST(Verify, SizesAndPresence) {
  for (const bool quick : {false, true}) {
    for (const bool checksums : {true, false}) {
      const Taken taken;
      if (!checksums) taken.storage->remove(taken.storage->list(".torchsnapshot/"));
      const std::string before = get(*taken.storage, taken.slab);
      const auto findings = [&] { return verify(*taken.storage, {.io = {}, .quick = quick}).findings; };

      taken.storage->publish(taken.slab, before.substr(0, before.size() - 1));
      ASSERT_EQ(findings().size(), 1U);
      EXPECT_EQ(findings()[0].kind, FindingKind::kWrongSize);
      EXPECT_EQ(findings()[0].entries.size(), 1U);  // the last one in the slab
      EXPECT_EQ(findings()[0].found, std::to_string(before.size() - 1) + " bytes");

      taken.storage->publish(taken.slab, before + "x");
      if (checksums) {
        ASSERT_EQ(findings().size(), 1U);
        EXPECT_EQ(findings()[0].kind, FindingKind::kWrongSize);
        EXPECT_THAT(findings()[0].entries, IsEmpty());
      }

      taken.storage->remove(std::vector{taken.slab});
      ASSERT_EQ(findings().size(), 1U);
      EXPECT_EQ(findings()[0].kind, FindingKind::kMissingObject);
      EXPECT_THAT(findings()[0].entries, ElementsAre("0/model/w", "0/progress/steps"));
      EXPECT_EQ(findings()[0].object, taken.slab);
    }
  }
}

TEST(Verify, ADamagedSidecarIsAFindingAndTheRestIsChecked) {
  const Taken taken;
  const std::string sidecar = taken.storage->list(".torchsnapshot/").front();
  change_object(*taken.storage, sidecar, [](std::string& content) { content[20] ^= 1; });
  const VerifyReport report = verify(*taken.storage);
  ASSERT_EQ(report.findings.size(), 1U);
  EXPECT_EQ(report.findings[0].kind, FindingKind::kChecksums);
  EXPECT_EQ(report.findings[0].object, sidecar);
  EXPECT_EQ(report.unchecked.size(), 2U);
  EXPECT_EQ(report.bytes_read, report.object_bytes);
}

TEST(Verify, DamagedMetadataIsAFinding) {
  const Taken taken;
  change_object(*taken.storage, std::string(kMetadataName), [](std::string& text) { text.resize(text.size() / 2); });
  const VerifyReport report = verify(*taken.storage);
  ASSERT_EQ(report.findings.size(), 1U);
  EXPECT_EQ(report.findings[0].kind, FindingKind::kMetadata);
  EXPECT_EQ(report.findings[0].object, kMetadataName);
}

TEST(Verify, NoSnapshotIsAnError) {
  const auto storage = new_memory_storage();
  expect_error(ErrorCode::kNotASnapshot, {storage->url(), "there is no snapshot"}, [&] { verify(*storage); });
}

TEST(Verify, TreesThatDoNotGoTogetherAreFindings) {
  const auto storage = new_memory_storage();
  SnapshotMetadata metadata;
  metadata.version = "0.1.0";
  metadata.manifest.add("0/a", DictEntry{.keys = {"x", "gone"}});
  metadata.manifest.add("0/a/x", PrimitiveEntry{.serialized_value = "1", .readable = {}});
  metadata.manifest.add("0/b", ListEntry{});
  metadata.manifest.add("0/b/0", PrimitiveEntry{.serialized_value = "1", .readable = {}});
  metadata.manifest.add("0/b/2", PrimitiveEntry{.serialized_value = "1", .readable = {}});
  metadata.manifest.add("0/c", PrimitiveEntry{.serialized_value = "1", .readable = {}});
  storage->publish(std::string(kMetadataName), write_metadata(metadata));
  const VerifyReport report = verify(*storage);
  ASSERT_EQ(report.findings.size(), 2U);
  for (const Finding& finding : report.findings) EXPECT_EQ(finding.kind, FindingKind::kStructure);
  EXPECT_THAT(report.findings[0].message, HasSubstr("gone"));
  EXPECT_THAT(report.findings[0].entries, ElementsAre("0/a"));
  EXPECT_THAT(report.findings[1].entries, ElementsAre("0/b"));
}

TEST(Verify, ObjectsThatCannotBeReadAreFindings) {
  const Taken taken;
  int unreadable = 0;
  for (std::int64_t fail_at = 0; fail_at < 20; ++fail_at) {
    FaultyStorage faulty(taken.storage, fail_at);
    try {
      const VerifyReport report = verify(faulty);
      for (const Finding& finding : report.findings) {
        EXPECT_THAT(finding.message, HasSubstr("injected"));
        unreadable += finding.kind == FindingKind::kUnreadable ? 1 : 0;
      }
      EXPECT_EQ(report.findings.empty(), faulty.calls() <= fail_at);
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("injected"));
    }
  }
  EXPECT_GE(unreadable, 4);
}

TEST(Verify, StopsWhenAsked) {
  const Taken taken;
  std::stop_source stop;
  stop.request_stop();
  VerifyOptions options;
  options.io.stop = stop.get_token();
  expect_error(ErrorCode::kCancelled, {}, [&] { verify(*taken.storage, options); });
}

}  // namespace
}  // namespace torchsnapshot
