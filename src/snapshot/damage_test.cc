// Bits flip and files are cut off at random places of data, checksums and metadata. What a restore brings is what was
// saved, or an error.

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "snapshot/testing_state.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {
namespace {

constexpr unsigned kCases = 10'000;

/// Changes `content`: a bit, a run of bytes, its end, or its length.
void damage(std::string& content, std::mt19937& random) {
  const std::size_t at = random() % content.size();
  switch (random() % 8) {
    case 0:
      content.resize(at);
      break;
    case 1:
      content.append(1 + random() % 40, static_cast<char>(random()));
      break;
    case 2:
      for (std::size_t i = at; i < std::min(content.size(), at + 512); ++i) content[i] = '\0';
      break;
    case 3:
      for (std::size_t i = at; i < std::min(content.size(), at + 64); ++i) content[i] = static_cast<char>(random());
      break;
    default:
      content[at] = static_cast<char>(content[at] ^ (1 << random() % 8));
  }
}

TEST(Damage, IsFoundOrHarmless) {
  const auto storage = open_memory_storage("damage-test");
  TakeOptions take_options;
  take_options.io.io_concurrency = 1;
  take_options.slab_bytes = 60'000;
  Snapshot::take(storage, NumberedState(5, {9000, 15'000, 10, 3}).app, take_options);
  std::map<std::string, std::string> whole;
  for (const std::string& name : storage->list("")) whole[name] = storage->read_all(name, UINT64_MAX, {});
  ASSERT_GE(whole.size(), 4U);

  std::map<ErrorCode, int> errors;
  int harmless = 0;
  std::map<std::string, int> damaged;
  for (unsigned seed = 0; seed < kCases; ++seed) {
    std::mt19937 random(seed);
    auto victim = whole.begin();
    std::advance(victim, random() % whole.size());
    std::string content = victim->second;
    damage(content, random);
    if (content == victim->second) continue;
    storage->publish(victim->first, content);
    ++damaged[victim->first];
    NumberedState target(-1, {9000, 15'000, 10, 3});
    RestoreOptions options;
    options.io.io_concurrency = 1;
    try {
      Snapshot(storage).restore(target.app, options);
      ++harmless;
      ASSERT_EQ(target.restored_number(), 5) << "seed " << seed << ", " << victim->first;
    } catch (const Error& error) {
      ++errors[error.code()];
      ASSERT_TRUE(error.code() == ErrorCode::kCorrupt || error.code() == ErrorCode::kNotASnapshot ||
                  error.code() == ErrorCode::kUnsupported)
          << error.what();
    }
    storage->publish(victim->first, victim->second);
  }
  for (const auto& [name, count] : damaged) EXPECT_GT(count, 100) << name;
  // Zeros written over the zeros between tensors, at most.
  EXPECT_LT(harmless, 50);
  EXPECT_GT(errors[ErrorCode::kCorrupt], 1000);
  EXPECT_GT(errors[ErrorCode::kNotASnapshot], 1000);
  RecordProperty("harmless", harmless);
}

}  // namespace
}  // namespace torchsnapshot
