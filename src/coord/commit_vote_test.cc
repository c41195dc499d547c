#include "coord/commit_vote.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>

#include "coord/failure_watch.h"
#include "coord/peer_error.h"
#include "coord/thread_world.h"

namespace torchsnapshot {
namespace {

using std::chrono::milliseconds;
using testing::Each;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr milliseconds kLong(60'000);
constexpr milliseconds kShort(150);

/// The part of a rank that does everything right; `committed` is told when rank 0 may publish.
void vote(Coordinator& ranks, milliseconds patience, std::atomic<int>& committed) {
  CommitVote vote(ranks, "take", patience);
  vote.arrive();
  if (ranks.rank() == 0) {
    vote.wait_for_all({});
    vote.begin_commit();
    ++committed;
    vote.announce_commit();
  } else {
    vote.wait_for_verdict({});
    EXPECT_EQ(committed, 1) << "rank " << ranks.rank() << " went on before the commit";
  }
}

TEST(CommitVote, AllWellCommitsOnceAndLeavesNoKeys) {
  for (const int size : {2, 3, 8}) {
    ThreadWorld world(size);
    std::atomic<int> committed{0};
    EXPECT_THAT(world.run([&](Coordinator& ranks) { vote(ranks, kLong, committed); }), Each(IsEmpty()));
    EXPECT_EQ(committed, 1);
    EXPECT_EQ(world.store().size(), 0U);
    EXPECT_EQ(world.exchanges(), 0) << "the vote may run in the background";
  }
}

TEST(CommitVote, AnErrorOfAnyRankIsAnErrorOnAll) {
  for (std::int64_t broken = 0; broken < 4; ++broken) {
    ThreadWorld world(4);
    std::atomic<int> committed{0};
    const auto errors = world.run([&](Coordinator& ranks) {
      if (ranks.rank() != broken) return vote(ranks, kLong, committed);
      CommitVote own(ranks, "take", kLong);
      own.fail(std::make_exception_ptr(Error(ErrorCode::kNoSpace, "disk full")));
      EXPECT_FALSE(own.may_be_committed());
      throw std::runtime_error("disk full");
    });
    EXPECT_EQ(committed, 0);
    for (std::size_t rank = 0; rank < 4; ++rank) {
      EXPECT_THAT(errors[rank], HasSubstr("disk full"));
      if (static_cast<std::int64_t>(rank) != broken) {
        EXPECT_EQ(errors[rank], "rank " + std::to_string(broken) + ": disk full");
      }
    }
    EXPECT_EQ(world.store().size(), 0U);
  }
}

TEST(CommitVote, ARankThatNeverArrivesIsNamed) {
  ThreadWorld world(4);
  std::atomic<int> committed{0};
  const auto errors = world.run([&](Coordinator& ranks) {
    if (ranks.rank() != 2) vote(ranks, ranks.rank() == 0 ? kShort : kLong, committed);
  });
  EXPECT_EQ(committed, 0);
  EXPECT_EQ(errors[2], "");
  for (const std::size_t rank : {0U, 1U, 3U})
    EXPECT_THAT(errors[rank], HasSubstr("nothing was heard of rank 2 for 0.15 s"));
}

TEST(CommitVote, TheStoreMayGoWithRank0OnceItKnowsWhoIsLate) {
  ThreadWorld world(4);
  std::atomic<int> committed{0};
  const auto errors = world.run([&](Coordinator& ranks) {
    if (ranks.rank() == 0) {
      try {
        vote(ranks, kShort, committed);
      } catch (const Error&) {
        world.store().fail();  // its process hosts the store, and ends
        throw;
      }
    }
    if (ranks.rank() != 2) return vote(ranks, kLong, committed);
    CommitVote own(ranks, "take", kLong);  // it still writes
    std::atomic<bool> stopped{false};
    FailureWatch watch(own, [&stopped] { stopped = true; });
    while (!stopped) std::this_thread::yield();
    while (true) {  // a block that takes longer than the store is there
      try {
        ranks.store().get("x");
      } catch (const Error&) {
        break;
      }
    }
    own.throw_failure();
  });
  EXPECT_EQ(committed, 0);
  EXPECT_THAT(errors, Each(HasSubstr("nothing was heard of rank 2 for 0.15 s")));
}

TEST(CommitVote, NothingIsHeardOfRank0) {
  ThreadWorld world(3);
  std::atomic<int> committed{0};
  const auto errors = world.run([&](Coordinator& ranks) {
    if (ranks.rank() == 0) {
      CommitVote own(ranks, "take", kLong);
      own.arrive();
      own.wait_for_all({});  // …and then it hangs, until the others have given up
      while (!ranks.store().get("torchsnapshot/take/decision")) std::this_thread::yield();
      own.begin_commit();
      ADD_FAILURE() << "committed although the others gave up";
    }
    vote(ranks, kShort, committed);
  });
  for (const std::string& error : errors) EXPECT_THAT(error, HasSubstr("has heard nothing of rank 0 for 0.15 s"));
}

TEST(CommitVote, NobodyCanGiveUpWhileRank0Commits) {
  ThreadWorld world(2);
  std::atomic<bool> gave_up{false};
  const auto errors = world.run([&](Coordinator& ranks) {
    CommitVote own(ranks, "take", kShort);
    own.arrive();
    if (ranks.rank() == 0) {
      own.wait_for_all({});
      own.begin_commit();
      while (!gave_up) std::this_thread::yield();  // dies here
      return;
    }
    try {
      own.wait_for_verdict({});
    } catch (const Error&) {
      EXPECT_TRUE(own.may_be_committed()) << "what this rank wrote has to stay";
      gave_up = true;
      own.fail(std::current_exception());
      EXPECT_TRUE(own.may_be_committed());
      throw;
    }
  });
  EXPECT_THAT(errors[1], HasSubstr("whether there is a snapshot is not known"));
}

TEST(CommitVote, AFailureToPublishReachesAll) {
  for (const bool maybe : {false, true}) {
    ThreadWorld world(2);
    const auto errors = world.run([&](Coordinator& ranks) {
      CommitVote own(ranks, "take", kLong);
      own.arrive();
      if (ranks.rank() == 0) {
        own.wait_for_all({});
        own.begin_commit();
        own.fail(std::make_exception_ptr(Error(ErrorCode::kIo, "publish failed")), maybe);
        return;
      }
      try {
        own.wait_for_verdict({});
      } catch (const Error&) {
        EXPECT_EQ(own.may_be_committed(), maybe);
        throw;
      }
    });
    EXPECT_EQ(errors[1], "rank 0: publish failed");
  }
}

TEST(CommitVote, AStoreThatIsGoneIsAnErrorAndNothingIsCertain) {
  ThreadWorld world(2);
  const auto errors = world.run([&](Coordinator& ranks) {
    CommitVote own(ranks, "take", kLong);
    if (ranks.rank() == 0) {
      world.store().fail();
      return;
    }
    try {
      own.wait_for_verdict({});
    } catch (const Error&) {
      own.fail(std::current_exception());
      EXPECT_TRUE(own.may_be_committed());
      throw;
    }
  });
  EXPECT_THAT(errors[1], HasSubstr("the store is gone"));
}

TEST(CommitVote, AStopEndsTheTakeOnAllRanks) {
  ThreadWorld world(3);
  std::stop_source stop;
  std::atomic<int> committed{0};
  const auto errors = world.run([&](Coordinator& ranks) {
    if (ranks.rank() == 2) {
      stop.request_stop();
      CommitVote own(ranks, "take", kLong);
      try {
        own.wait_for_verdict(stop.get_token());
      } catch (const Error&) {
        own.fail(std::current_exception());
        throw;
      }
    }
    vote(ranks, kLong, committed);
  });
  for (const std::string& error : errors) EXPECT_THAT(error, HasSubstr("cancelled"));
}

TEST(PeerError, KeepsTheCode) {
  for (int i = 0; i <= static_cast<int>(ErrorCode::kInternal); ++i) {
    const auto code = static_cast<ErrorCode>(i);
    const Error error = decode_error(7, encode_error(Error(code, "a b")));
    EXPECT_EQ(error.code(), code);
    EXPECT_STREQ(error.what(), "rank 7: a b");
  }
  EXPECT_EQ(encode_error(std::make_exception_ptr(std::runtime_error("x"))), "INTERNAL x");
  EXPECT_EQ(encode_error(std::make_exception_ptr(1)), "INTERNAL unknown error");
}

TEST(AgreeAllWell, OneExchangeOrTwo) {
  ThreadWorld world(3);
  EXPECT_THAT(world.run([](Coordinator& ranks) { agree_all_well(ranks, ""); }), Each(IsEmpty()));
  EXPECT_EQ(world.exchanges(), 1);
  const auto errors = world.run([](Coordinator& ranks) {
    agree_all_well(ranks, ranks.rank() == 0 ? "" : encode_error(Error(ErrorCode::kIo, "broken")));
  });
  EXPECT_EQ(world.exchanges(), 3);
  EXPECT_THAT(errors, Each(std::string("rank 1: broken")));
}

TEST(ThreadWorld, ARankThatLeavesEndsTheExchangesOfTheOthers) {
  ThreadWorld world(3);
  const auto errors = world.run([](Coordinator& ranks) {
    if (ranks.rank() == 1) throw std::runtime_error("dead");
    ranks.gather("x");
  });
  EXPECT_EQ(errors[0], "an exchange failed: rank 1 is gone");
  EXPECT_EQ(errors[2], "an exchange failed: rank 1 is gone");
}

}  // namespace
}  // namespace torchsnapshot
