// prune on object stores: the uploads that a crash leaves, beside the objects.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coord/thread_world.h"
#include "snapshot/take_marker.h"
#include "snapshot/testing_inspect.h"
#include "snapshot/world_take.h"
#include "storage/testing.h"
#include "storage/testing_store.h"
#include "torchsnapshot/prune.h"

namespace torchsnapshot {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const std::string kId(32, 'a');
constexpr double kTwoDays = 2 * 86400;

class PruneStore : public testing::TestWithParam<StoreKind> {
 protected:
  PruneStore() {
    static int places = 0;
    const std::string prefix = "prune/" + std::to_string(++places);
    settings_ = settings_for(GetParam(), prefix);
    storage_ = store(settings_);
    age(0);
  }
  ~PruneStore() override { server().set({{"age", 0.0}, {"refuse_upload_lists", false}, {"refuse_lists", false}}); }

  /// What is written from now on is so many seconds old at once.
  static void age(double seconds) { server().set({{"age", seconds}}); }
  /// What a process that dies leaves of a large object.
  void leave_upload(const std::string& location, int parts) {
    const auto api = api_of(settings_);
    const std::string key = settings_.prefix + "/" + location;
    const Upload upload = api->start_upload(key, 20 << 20, 5 << 20, {});
    for (int i = 1; i <= parts; ++i) api->put_part(key, upload, i, bytes_of(std::string(1000, 'x')), {}, {});
  }
  std::vector<std::string> unfinished() {
    std::vector<std::string> locations;
    for (const UnfinishedObject& object : storage_->list_unfinished("")) locations.push_back(object.location);
    return locations;
  }

  StoreSettings settings_;
  std::shared_ptr<Storage> storage_;
  SmallState state_;
};
INSTANTIATE_TEST_SUITE_P(Kinds, PruneStore, testing::Values(StoreKind::kS3, StoreKind::kGoogleXml));

TEST_P(PruneStore, OldUploadsGoAndYoungOnesStay) {
  Snapshot::take(storage_, state_.app());
  const auto committed = storage_->list("");
  age(kTwoDays);
  leave_upload("data/" + kId + "/0-0", 2);
  leave_upload("data/" + kId + "/0-1", 0);
  put(*storage_, "data/" + kId + "/0-2", "left over");
  leave_upload("elsewhere/x", 1);
  const std::string other(32, 'b');
  leave_upload("data/" + other + "/0-0", 1);
  age(0);
  leave_upload("data/" + other + "/0-1", 1);  // the newest part decides for all of a take

  const PruneReport dry = prune(*storage_, {.dry_run = true});
  EXPECT_EQ(dry.removed_unfinished, 2U);
  EXPECT_EQ(dry.removed_objects, 1U);
  EXPECT_EQ(dry.removed_bytes, 2009U);
  EXPECT_EQ(unfinished().size(), 5U);
  const PruneReport report = prune(*storage_);
  EXPECT_EQ(report.removed_unfinished, 2U);
  ASSERT_EQ(report.left_overs.size(), 2U);
  EXPECT_EQ(report.left_overs[0].life, TakeLife::kDead);
  EXPECT_EQ(report.left_overs[0].unfinished.size(), 2U);
  EXPECT_EQ(report.left_overs[1].life, TakeLife::kRunning);
  EXPECT_EQ(report.left_overs[1].bytes, 2000U);
  EXPECT_THAT(unfinished(), ElementsAre("data/" + other + "/0-0", "data/" + other + "/0-1", "elsewhere/x"));
  EXPECT_EQ(storage_->list(""), committed);
  EXPECT_EQ(prune(*storage_, {.older_than = 0s}).removed_unfinished, 2U);
  EXPECT_THAT(unfinished(), ElementsAre("elsewhere/x"));
}

TEST_P(PruneStore, AnUploadWhosePartsKeepComingIsRunning) {
  const auto api = api_of(settings_);
  const std::string key = settings_.prefix + "/data/" + kId + "/0-0";
  age(kTwoDays);
  const Upload upload = api->start_upload(key, 20 << 20, 5 << 20, {});
  age(0);
  EXPECT_EQ(prune(*storage_, {.dry_run = true}).removed_unfinished, 1U);
  api->put_part(key, upload, 1, bytes_of("x"), {}, {});
  EXPECT_EQ(prune(*storage_).removed_unfinished, 0U);
}

TEST_P(PruneStore, MarkersDecideForUploadsToo) {
  leave_upload("data/" + kId + "/0-0", 1);
  storage_->publish(take_marker_location(kId, 0), make_take_marker(this_process()));
  EXPECT_EQ(prune(*storage_, {.older_than = 0s}).removed_unfinished, 0U);
  ProcessIdentity gone = this_process();
  gone.start_time += "1";
  storage_->publish(take_marker_location(kId, 0), make_take_marker(gone));
  EXPECT_EQ(prune(*storage_).removed_unfinished, 1U);  // however young
  EXPECT_THAT(unfinished(), IsEmpty());
  EXPECT_THAT(storage_->list(""), IsEmpty());
}

// A store that answered the start of an upload into a broken connection keeps it, and the writer has begun another.
TEST_P(PruneStore, AStrayUploadOfACommittedTakeGoesAlone) {
  Snapshot::take(storage_, state_.app());
  const auto committed = storage_->list("");
  age(kTwoDays);
  leave_upload(objects_of(*storage_).front(), 0);
  const PruneReport report = prune(*storage_);
  EXPECT_EQ(report.removed_unfinished, 1U);
  EXPECT_EQ(report.removed_objects, 0U);
  EXPECT_EQ(storage_->list(""), committed);
  EXPECT_THAT(unfinished(), IsEmpty());
}

TEST_P(PruneStore, AStoreThatCanNotListUploadsIsSaidSo) {
  age(kTwoDays);
  leave_upload("data/" + kId + "/0-0", 1);
  put(*storage_, "data/" + kId + "/0-2", "left over");
  server().set({{"refuse_upload_lists", true}});
  const PruneReport report = prune(*storage_);
  EXPECT_EQ(report.removed_objects, 1U);
  ASSERT_EQ(report.notices.size(), 1U);
  EXPECT_THAT(report.notices[0], HasSubstr("ListMultipartUploads"));
  EXPECT_THAT(report.notices[0], HasSubstr("501 NotImplemented"));
}

TEST_P(PruneStore, WithoutThePermissionToListNothingIsRemoved) {
  put(*storage_, "data/" + kId + "/0-2", "left over");
  server().set({{"refuse_lists", true}});
  expect_error(ErrorCode::kPermissionDenied, {"ListObjects", "permission for ListBucket"},
               [&] { prune(*storage_, {.older_than = 0s}); });
  server().set({{"refuse_lists", false}});
  EXPECT_EQ(storage_->list("").size(), 1U);
}

// A take of several ranks that fails: what a dead rank was uploading goes with the rest, at once.
TEST_P(PruneStore, TheUploadsOfADeadRankGoWithItsTake) {
  leave_upload("data/" + kId + "/1-0", 1);  // of another take
  ThreadWorld world(2);
  const auto errors = world.run([&](Coordinator& ranks) {
    TakeOptions options;
    options.coordinator = {std::shared_ptr<void>(), &ranks};  // it belongs to the world
    options.commit_timeout = std::chrono::milliseconds(500);
    if (ranks.rank() == 1) {
      const std::string folder = "data/" + plan_world_take(ranks, state_.app(), options).take_id;
      leave_upload(folder + "/1-0", 2);
      put(*storage_, folder + "/1-1", "finished");
      return;
    }
    Snapshot::take(storage_, state_.app(), options);
  });
  EXPECT_THAT(errors[0], HasSubstr("nothing was heard of rank 1"));
  EXPECT_THAT(unfinished(), ElementsAre("data/" + kId + "/1-0"));
  EXPECT_THAT(storage_->list(""), IsEmpty());
}

}  // namespace
}  // namespace torchsnapshot
