// The vote, over keys below "torchsnapshot/TAKE_ID/":
//  1. A rank that has written everything sets arrived/RANK and adds 1 to `arrivals`.
//  2. Rank 0 waits until all have, then sets `decision` to "commit", if nobody has set it before. After that, and only
//     then, it publishes the metadata.
//  3. Rank 0 sets `verdict` to "commit".
//  A rank that fails, or has waited too long, sets `decision` to "RANK error", if nobody has set it before, and then
//  `verdict` to what the decision is, so that all that wait wake up.
//  The decision is set once and by one atomic operation, so a rank that gives up can't do so while rank 0 commits.
//  A rank that still writes looks at `verdict` now and then (coord/failure_watch.h), so that it ends when another
//  failed. A rank that has seen the end adds 1 to `left`; the last one removes the keys. Rank 0 waits a moment for the
//  others to have seen it, however it ends: with its process, the store's server may go. What a rank has seen it need
//  not ask the store for again.
// Values are looked at again and again, with growing pauses; nobody blocks inside the store, which others share.

#include "coord/commit_vote.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <thread>
#include <utility>

#include "coord/peer_error.h"

namespace torchsnapshot {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::string_view kCommit = "commit";
/// In front of a verdict after which what was written has to stay.
constexpr std::string_view kMaybe = "maybe ";
constexpr std::size_t kNamedRanks = 8;
constexpr std::chrono::milliseconds kGrace(1000);
constexpr std::chrono::milliseconds kLingerAfterCommit(5000);
constexpr std::chrono::milliseconds kLookMargin(500);

/// The longest pause between two looks; with many ranks longer, so that the store can answer all.
std::chrono::milliseconds longest_pause(std::int64_t world_size) {
  return std::chrono::milliseconds(50 + world_size / 20);
}

std::string seconds(std::chrono::milliseconds time) {
  std::string text = std::to_string(static_cast<double>(time.count()) / 1000.0);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text + " s";
}

}  // namespace

CommitVote::CommitVote(Coordinator& coordinator, const std::string& take_id, std::chrono::milliseconds patience)
    : coordinator_(coordinator),
      store_(coordinator.store()),
      prefix_("torchsnapshot/" + take_id + "/"),
      patience_(patience) {}

CommitVote::Outcome CommitVote::wait_for(const LookFn& look, const std::stop_token& stop, std::string& value) {
  // Rank 0 can say who is late; so the others let it speak first.
  const auto grace = coordinator_.rank() == 0 ? std::chrono::milliseconds(0) : std::min(patience_, kGrace);
  const auto deadline = Clock::now() + patience_ + grace;
  const auto longest = longest_pause(coordinator_.world_size());
  std::chrono::milliseconds pause(1);
  while (true) {
    if (auto found = look()) {
      value = *std::move(found);
      return Outcome::kValue;
    }
    if (stop.stop_requested()) throw Error(ErrorCode::kCancelled, "cancelled while waiting for the other ranks");
    if (poll_) poll_();
    const auto now = Clock::now();
    if (now >= deadline) return Outcome::kLate;
    std::this_thread::sleep_for(std::min<Clock::duration>(pause, deadline - now));
    pause = std::min(pause * 2, longest);
  }
}

std::string CommitVote::decide(const std::string& decision) {
  std::string counts = store_.set_once(key("decision"), decision);
  if (counts != kCommit) store_.set(key("verdict"), counts);
  return counts;
}

void CommitVote::throw_decision(const std::string& decision) {
  std::string_view text = decision;
  if (text.starts_with(kMaybe)) {
    may_be_committed_ = true;
    text.remove_prefix(kMaybe.size());
  }
  std::int64_t rank = 0;
  const std::size_t space = text.find(' ');
  std::from_chars(text.data(), text.data() + std::min(space, text.size()), rank);
  try {
    linger_after_failure();
  } catch (const Error&) {  // the store is gone: so have the others, or they learn no more
    over_ = true;
  }
  leave();
  throw decode_error(rank, space == std::string_view::npos ? std::string_view() : text.substr(space + 1));
}

std::string CommitVote::late_ranks() {
  std::string list;
  std::size_t count = 0;
  for (std::int64_t rank = 0; rank < coordinator_.world_size(); ++rank) {
    if (rank == coordinator_.rank() || store_.get(key("arrived/" + std::to_string(rank)))) continue;
    if (++count <= kNamedRanks) list += (list.empty() ? "" : ", ") + std::to_string(rank);
  }
  if (count > kNamedRanks) list += " and " + std::to_string(count - kNamedRanks) + " more";
  return (count == 1 ? "rank " : "ranks ") + list;
}

void CommitVote::arrive() {
  store_.set(key("arrived/" + std::to_string(coordinator_.rank())), "1");
  store_.add(key("arrivals"), 1);
}

void CommitVote::wait_for_all(const std::stop_token& stop) {
  std::string value;
  const auto look = [this]() -> std::optional<std::string> {
    if (store_.add(key("arrivals"), 0) >= coordinator_.world_size()) return std::string(kCommit);
    return store_.get(key("verdict"));
  };
  if (wait_for(look, stop, value) == Outcome::kLate) {
    const Error late(ErrorCode::kIo, "nothing was heard of " + late_ranks() + " for " + seconds(patience_) +
                                         ": dead, stuck, or slower than the commit timeout allows");
    value = decide(std::to_string(coordinator_.rank()) + " " + encode_error(late));
  }
  if (value != kCommit) throw_decision(value);
}

void CommitVote::begin_commit() {
  const std::string decision = store_.set_once(key("decision"), std::string(kCommit));
  if (decision != kCommit) throw_decision(decision);
  committing_ = true;
}

void CommitVote::announce_commit() {
  store_.set(key("verdict"), std::string(kCommit));
  linger(kLingerAfterCommit);
  leave();
}

/// Long enough for all that live to have looked twice; the dead don't come.
void CommitVote::linger_after_failure() {
  if (!over_) linger(2 * watch_pause() + kLookMargin);
}

void CommitVote::linger(std::chrono::milliseconds limit) {
  if (coordinator_.rank() != 0) return;
  const auto deadline = Clock::now() + limit;
  const auto longest = longest_pause(coordinator_.world_size());
  std::chrono::milliseconds pause(1);
  while (store_.add(key("left"), 0) < coordinator_.world_size() - 1 && Clock::now() < deadline) {
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, longest);
  }
}

void CommitVote::wait_for_verdict(const std::stop_token& stop) {
  std::string value;
  const auto look = [this] { return store_.get(key("verdict")); };
  if (wait_for(look, stop, value) == Outcome::kLate) {
    const Error late(ErrorCode::kIo, "rank " + std::to_string(coordinator_.rank()) +
                                         " has heard nothing of rank 0 for " + seconds(patience_) +
                                         ": dead, stuck, or slower than the commit timeout allows");
    value = decide(std::to_string(coordinator_.rank()) + " " + encode_error(late));
    if (value == kCommit) {
      may_be_committed_ = true;
      if (wait_for(look, stop, value) == Outcome::kLate) {
        throw Error(ErrorCode::kIo, "rank 0 was about to commit, and has not been heard of for " + seconds(patience_) +
                                        ": whether there is a snapshot is not known");
      }
      may_be_committed_ = false;
    }
  }
  if (value != kCommit) throw_decision(value);
  leave();
}

bool CommitVote::has_failed() const {
  const auto verdict = store_.get(key("verdict"));
  if (!verdict || *verdict == kCommit) return false;
  const std::lock_guard lock(seen_mutex_);
  seen_failure_ = *verdict;
  return true;
}

std::chrono::milliseconds CommitVote::watch_pause() const {
  return 5 * longest_pause(coordinator_.world_size());
}

void CommitVote::throw_failure() {
  std::string failure;
  {
    const std::lock_guard lock(seen_mutex_);
    failure = seen_failure_;
  }
  if (!failure.empty()) throw_decision(failure);
}

void CommitVote::fail(const std::exception_ptr& error, bool maybe_committed) noexcept {
  if (std::exchange(over_, true)) return;
  try {
    std::string text = std::to_string(coordinator_.rank()) + " " + encode_error(error);
    if (committing_) {
      if (maybe_committed) text.insert(0, kMaybe);
      store_.set(key("verdict"), text);
    } else if (decide(text) == kCommit) {
      may_be_committed_ = true;  // rank 0 commits, whatever became of this rank after it had arrived
    }
    over_ = false;
    linger_after_failure();
    leave();
  } catch (...) {
    may_be_committed_ = true;  // the store is gone: nothing is known of the others
  }
}

void CommitVote::leave() noexcept {
  if (std::exchange(over_, true)) return;
  try {
    if (store_.add(key("left"), 1) < coordinator_.world_size()) return;
    for (std::int64_t rank = 0; rank < coordinator_.world_size(); ++rank) {
      store_.remove(key("arrived/" + std::to_string(rank)));
    }
    for (const char* name : {"arrivals", "decision", "verdict", "left"}) store_.remove(key(name));
  } catch (...) {  // the take has ended; some small keys stay in the store
    return;
  }
}

void agree_all_well(Coordinator& coordinator, const std::string& error) {
  constexpr std::size_t kLimit = 10;  // digits of a size
  constexpr std::size_t kLongest = 64 << 10;
  const std::string text = error.substr(0, kLongest);
  const auto sizes = coordinator.all_gather(std::to_string(text.size()), kLimit);
  std::size_t longest = 0;
  for (const std::string& size : sizes) longest = std::max<std::size_t>(longest, std::stoul(size));
  if (longest == 0) return;
  const auto texts = coordinator.all_gather(text, longest);
  for (std::size_t rank = 0; rank < texts.size(); ++rank) {
    if (!texts[rank].empty()) throw decode_error(static_cast<std::int64_t>(rank), texts[rank]);
  }
}

}  // namespace torchsnapshot
