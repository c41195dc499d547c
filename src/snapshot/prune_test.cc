#include "torchsnapshot/prune.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <filesystem>

#include "snapshot/take_marker.h"
#include "snapshot/testing_inspect.h"
#include "storage/testing.h"
#include "storage/testing_forward.h"

namespace torchsnapshot {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

const std::string kId(32, 'a');
const std::string kOther(32, 'b');

/// A snapshot in a folder, whose files can be made old.
class PruneTest : public testing::Test {
 protected:
  void old(const std::string& location, std::chrono::hours age = std::chrono::hours(48)) {
    std::filesystem::last_write_time(folder_.path() / "s" / location,
                                     std::filesystem::file_time_type::clock::now() - age);
  }
  void put_old(const std::string& location, const std::string& content = "left over") {
    put(*storage_, location, content);
    old(location);
  }
  void mark(const std::string& id, const ProcessIdentity& process) {
    storage_->publish(take_marker_location(id, 0), make_take_marker(process));
  }
  static ProcessIdentity gone_process() {
    ProcessIdentity process = this_process();
    process.start_time += "1";  // the same number, used by another one before
    return process;
  }
  std::vector<std::string> locations() { return storage_->list(""); }

  TemporaryFolder folder_;
  std::shared_ptr<Storage> storage_ = open_storage((folder_.path() / "s").native());
  SmallState state_;
};

TEST_F(PruneTest, CommittedObjectsStayHoweverOld) {
  Snapshot::take(storage_, state_.app());
  write_sidecar(*storage_);
  for (const std::string& location : locations()) old(location, std::chrono::hours(24 * 365));
  const auto before = locations();
  const PruneReport report = prune(*storage_, {.older_than = std::chrono::seconds(0)});
  EXPECT_THAT(report.left_overs, IsEmpty());
  EXPECT_EQ(locations(), before);
}

TEST_F(PruneTest, OldLeftOversGoAndYoungOnesStay) {
  Snapshot::take(storage_, state_.app());
  const auto committed = locations();
  put_old("data/" + kId + "/0-0");
  put_old("data/" + kId + "/0-1");
  put_old(".torchsnapshot/" + kId + "/checksums-0");
  put_old(".tmp-0123456789abcdef");
  put_old("data/" + kOther + "/0-0");
  put(*storage_, "data/" + kOther + "/0-1", "just now");  // its newest object counts
  put(*storage_, ".tmp-fedcba9876543210", "just now");

  const PruneReport dry = prune(*storage_, {.dry_run = true});
  EXPECT_EQ(dry.removed_objects, 4U);
  EXPECT_EQ(dry.removed_bytes, 4 * 9U);
  EXPECT_EQ(locations().size(), committed.size() + 7);

  const PruneReport report = prune(*storage_);
  EXPECT_EQ(report.removed_objects, 4U);
  ASSERT_EQ(report.left_overs.size(), 4U);
  auto expected = committed;
  expected.insert(expected.end(), {"data/" + kOther + "/0-0", "data/" + kOther + "/0-1", ".tmp-fedcba9876543210"});
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(locations(), expected);
  EXPECT_EQ(Snapshot(storage_).metadata()->world_size, 1);

  EXPECT_EQ(prune(*storage_, {.older_than = std::chrono::seconds(0)}).removed_objects, 3U);
  EXPECT_EQ(locations(), committed);
}

TEST_F(PruneTest, WhatIsNotNamedLikeOursStays) {
  Snapshot::take(storage_, state_.app());
  const std::vector<std::string> strangers{
      "0/model/weight", "data/notes.txt",          "data/" + kId,          "data/" + std::string(32, 'G') + "/0-0",
      "step-5/data/x",  ".torchsnapshot/settings", ".tmp-0123456789abcde", ".tmp-0123456789ABCDEF",
      "batched/uuid",   "x.tmp-0123456789abcdef",  "data2/" + kId + "/0-0"};
  for (const std::string& location : strangers) put_old(location);
  EXPECT_THAT(prune(*storage_, {.older_than = std::chrono::seconds(0)}).left_overs, IsEmpty());
  for (const std::string& location : strangers) EXPECT_EQ(get(*storage_, location), "left over");
}

TEST_F(PruneTest, ARunningProcessKeepsItsTakeHoweverOld) {
  put_old("data/" + kId + "/0-0");
  mark(kId, this_process());
  old(take_marker_location(kId, 0));
  const PruneReport report = prune(*storage_, {.older_than = std::chrono::seconds(0)});
  ASSERT_EQ(report.left_overs.size(), 1U);
  EXPECT_EQ(report.left_overs[0].life, TakeLife::kRunning);
  EXPECT_THAT(report.left_overs[0].reason, HasSubstr("process " + std::to_string(::getpid())));
  EXPECT_EQ(locations().size(), 2U);
}

TEST_F(PruneTest, ATakeWhoseProcessIsGoneIsDeadAtOnce) {
  put(*storage_, "data/" + kId + "/0-0", "young");
  mark(kId, gone_process());
  const PruneReport report = prune(*storage_);
  ASSERT_EQ(report.left_overs.size(), 1U);
  EXPECT_THAT(report.left_overs[0].reason, HasSubstr("is gone"));
  EXPECT_THAT(locations(), IsEmpty());
}

TEST_F(PruneTest, OneRankThatMayLiveKeepsTheTake) {
  put(*storage_, "data/" + kId + "/0-0", "young");
  mark(kId, gone_process());
  ProcessIdentity elsewhere = this_process();
  elsewhere.boot_id = "another machine";
  storage_->publish(take_marker_location(kId, 1), make_take_marker(elsewhere));
  EXPECT_EQ(prune(*storage_).removed_objects, 0U);
  for (const std::string& location : locations()) old(location);
  EXPECT_EQ(prune(*storage_).removed_objects, 3U);
}

TEST_F(PruneTest, AMarkerThatWasForgottenAfterTheCommitGoesAlone) {
  Snapshot::take(storage_, state_.app());
  const auto committed = locations();
  const std::string id(take_id_of(objects_of(*storage_).front()));
  mark(id, gone_process());
  const PruneReport report = prune(*storage_);
  EXPECT_EQ(report.removed_objects, 1U);
  EXPECT_EQ(locations(), committed);
}

/// Prunes, without any patience, when a take is about to commit.
class PrunesBeforeTheCommit final : public ForwardingStorage {
 public:
  using ForwardingStorage::ForwardingStorage;
  void publish(const std::string& location, std::string_view content) override {
    report = prune(*inner_, {.older_than = std::chrono::seconds(0)});
    if (fails) throw Error(ErrorCode::kIo, "publish: injected");
    ForwardingStorage::publish(location, content);
  }
  PruneReport report;
  bool fails = false;
};

TEST_F(PruneTest, ATakeMarksItselfAsRunning) {
  const auto storage = std::make_shared<PrunesBeforeTheCommit>(storage_);
  Snapshot::take(storage, state_.app());  // over nothing
  EXPECT_EQ(storage->report.removed_objects, 0U);
  ASSERT_EQ(storage->report.left_overs.size(), 1U);
  EXPECT_EQ(storage->report.left_overs[0].life, TakeLife::kRunning);
  Snapshot::take(storage, state_.app());  // over another one
  EXPECT_EQ(storage->report.removed_objects, 0U);
  AppState app = state_.app();
  EXPECT_TRUE(Snapshot(storage_).restore(app).corrupt.empty());
  EXPECT_THAT(locations(), Not(Contains(HasSubstr("/running-"))));
  const auto before = locations();
  storage->fails = true;
  EXPECT_THROW(Snapshot::take(storage, state_.app()), Error);
  EXPECT_EQ(locations(), before);
}

TEST_F(PruneTest, UnreadableMetadataKeepsEverything) {
  storage_->publish(std::string(kMetadataName), "{");
  put_old("data/" + kId + "/0-0");
  expect_error(ErrorCode::kCorrupt, {"nothing is removed"}, [&] { prune(*storage_); });
  EXPECT_EQ(locations().size(), 2U);
}

/// A storage that tells no times.
class Timeless final : public ForwardingStorage {
 public:
  using ForwardingStorage::ForwardingStorage;
  std::vector<ObjectInfo> list_objects(const std::string& prefix) override { return Storage::list_objects(prefix); }
};

TEST_F(PruneTest, WithoutTimesOnlyAnAgeOfZeroDecides) {
  put_old("data/" + kId + "/0-0");
  Timeless timeless(storage_);
  expect_error(ErrorCode::kUnsupported, {"--older-than 0"}, [&] { prune(timeless); });
  EXPECT_EQ(prune(timeless, {.older_than = std::chrono::seconds(0)}).removed_objects, 1U);
}

TEST_F(PruneTest, RemoveTakesTheSnapshotAndNothingElse) {
  Snapshot::take(storage_, state_.app());
  write_sidecar(*storage_);
  put(*storage_, "data/" + kId + "/0-0", "of a running take");
  put(*storage_, "notes", "mine");
  std::uint64_t bytes = 0;
  for (const ObjectInfo& object : storage_->list_objects("")) bytes += *object.size;
  const RemoveReport dry = remove_snapshot(*storage_, false, true);
  EXPECT_EQ(dry.objects, 4U);
  EXPECT_EQ(dry.bytes, bytes - std::string("of a running takemine").size());
  EXPECT_EQ(locations().size(), 6U);
  const RemoveReport report = remove_snapshot(*storage_);
  EXPECT_EQ(report.objects, 4U);
  EXPECT_EQ(report.remaining, 1U);
  EXPECT_THAT(locations(), ElementsAre("data/" + kId + "/0-0", "notes"));
  expect_error(ErrorCode::kNotASnapshot, {"there is no snapshot"}, [&] { remove_snapshot(*storage_); });
}

TEST_F(PruneTest, RemoveOfUnreadableMetadataTakesForce) {
  Snapshot::take(storage_, state_.app());
  storage_->publish(std::string(kMetadataName), "{");
  expect_error(ErrorCode::kCorrupt, {"nothing is removed"}, [&] { remove_snapshot(*storage_); });
  EXPECT_EQ(remove_snapshot(*storage_, true).objects, 1U);
  EXPECT_THAT(locations(), Not(Contains(std::string(kMetadataName))));
  EXPECT_EQ(locations().size(), 3U);  // for prune
}

TEST_F(PruneTest, RemoveOfMetadataWithABrokenSealTakesForce) {
  Snapshot::take(storage_, state_.app());
  change_object(*storage_, std::string(kMetadataName), [](std::string& text) {
    const auto at = text.find("tuple");
    text[at] = 'T';
  });
  expect_error(ErrorCode::kCorrupt, {"nothing is removed"}, [&] { remove_snapshot(*storage_); });
  EXPECT_EQ(remove_snapshot(*storage_, true).objects, 4U);
  EXPECT_THAT(locations(), IsEmpty());
}

TEST_F(PruneTest, RemoveGoesByTheNamesThatTheStorageUses) {
  SnapshotMetadata metadata;
  metadata.version = "0.1.0";
  metadata.manifest.add("0/a", ObjectEntry{"x/../keep", "torch_save", "t", false});
  metadata.manifest.add("0/b", ObjectEntry{"gone", "torch_save", "t", false});
  metadata.manifest.add("0/c", ObjectEntry{".snapshot_metadata", "torch_save", "t", false});
  storage_->publish(std::string(kMetadataName), write_metadata(metadata));
  put(*storage_, "keep", "1");
  put(*storage_, "gone", "1");
  EXPECT_EQ(remove_snapshot(*storage_).objects, 3U);
  EXPECT_THAT(locations(), IsEmpty());  // both name their object in the one way that the storage knows
}

TEST(TakeMarker, TellsProcessesApart) {
  const ProcessIdentity here = this_process();
  EXPECT_EQ(here.pid, ::getpid());
  EXPECT_FALSE(here.start_time.empty());
  EXPECT_EQ(life_of(here), ProcessLife::kRunning);
  EXPECT_EQ(parse_take_marker(make_take_marker(here)), here);
  const auto never = [](std::int64_t) -> std::optional<std::string> { return std::nullopt; };
  const auto gone = [](std::int64_t) -> std::optional<std::string> { return ""; };
  const auto same = [&](std::int64_t) -> std::optional<std::string> { return here.start_time; };
  EXPECT_EQ(life_of(here, here, never), ProcessLife::kUnknown);
  EXPECT_EQ(life_of(here, here, gone), ProcessLife::kGone);
  EXPECT_EQ(life_of(here, here, same), ProcessLife::kRunning);
  for (auto field : {&ProcessIdentity::boot_id, &ProcessIdentity::pid_namespace}) {
    ProcessIdentity other = here;
    other.*field = "other";
    EXPECT_EQ(life_of(other, here, same), ProcessLife::kUnknown);
    other.*field = "";
    EXPECT_EQ(life_of(other, here, same), ProcessLife::kUnknown);
  }
  for (const std::string text :
       {"", "torchsnapshot take 1\n", "torchsnapshot take 1\na\nb\nc\n-1\n2\n",
        "torchsnapshot take 1\na\nb\nc\n1\n2\nmore\n", "torchsnapshot take 1\na\nb\nc\n1x\n2\n"}) {
    EXPECT_FALSE(parse_take_marker(text).has_value()) << text;
  }
  EXPECT_TRUE(is_take_marker(take_marker_location(kId, 12)));
  EXPECT_FALSE(is_take_marker(".torchsnapshot/" + kId + "/checksums-0"));
}

}  // namespace
}  // namespace torchsnapshot
