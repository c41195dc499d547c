#include "cloud/transfer_gate.h"

#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <thread>
#include <vector>

namespace torchsnapshot {
namespace {

using namespace std::chrono_literals;
constexpr auto kLong = std::chrono::milliseconds(60'000);

TEST(TransferGate, LetsNoMorePassThanItsLimit) {
  TransferGate gate;
  gate.set_limit(3);
  std::atomic<int> inside = 0;
  std::atomic<int> most = 0;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 12; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 200; ++i) {
          auto place = gate.enter({}, kLong);
          const int now = ++inside;
          for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
          }
          std::this_thread::yield();
          --inside;
          place.release();
          place.release();  // once is enough
        }
      });
    }
  }
  EXPECT_GE(most, 1);
  EXPECT_LE(most, 3);
}

TEST(TransferGate, WithoutALimitNobodyWaits) {
  TransferGate gate;
  std::vector<TransferGate::Place> places;
  for (int i = 0; i < 100; ++i) places.push_back(gate.enter({}, kLong));
}

TEST(TransferGate, APlaceThatMovesIsGivenBackOnce) {
  TransferGate gate;
  gate.set_limit(1);
  TransferGate::Place first = gate.enter({}, kLong);
  TransferGate::Place second;
  second = std::move(first);
  first.release();  // NOLINT(bugprone-use-after-move): it has none
  std::atomic<bool> is_in = false;
  std::jthread other([&] {
    const auto place = gate.enter({}, kLong);
    is_in = true;
  });
  EXPECT_FALSE(is_in);
  second = TransferGate::Place();
  other.join();
  EXPECT_TRUE(is_in);
}

TEST(TransferGate, AWaitEndsByTimeByAStopAndByAWiderLimit) {
  TransferGate gate;
  gate.set_limit(1);
  const auto held = gate.enter({}, kLong);
  const auto late = gate.enter({}, 1ms);
  std::stop_source stop;
  std::optional<TransferGate::Place> stopped;
  std::jthread waiting([&] { stopped = gate.enter(stop.get_token(), kLong); });
  stop.request_stop();
  waiting.join();
  EXPECT_TRUE(stopped.has_value());
  std::jthread wider([&] { static_cast<void>(gate.enter({}, kLong)); });
  gate.set_limit(10);
  wider.join();
}

}  // namespace
}  // namespace torchsnapshot
