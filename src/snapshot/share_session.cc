// A restore of several ranks, step by step. A meeting is one sum over all ranks, whose first number says how many are
// not well; if any is, the restore goes to its end on all.
//  1. A meeting when each rank has looked at the snapshot, and nothing has been changed yet. In it the ranks say
//     whether they want to read for each other; one that does not, decides for all.
//  2. If they do, for what is not plain elements (decoded before tensors are touched), and again for tensors:
//     a. a meeting: digests of what each wants and would take from others. If they differ, the lists, all to all, in
//        two exchanges;
//     b. for each round of plan/share_plan.h, when a rank has read its parcels: a meeting, then the bytes. In the last
//        meeting also how much was found damaged; if any (the ranks go on in spite of it), two exchanges tell what.
//  3. The end (agree_all_well): errors, before any rank hands state to the program.
// A rank that fails between two meetings joins the next one to say so, and goes to the end: so the calls of all ranks
// match, whatever happens where.

#include "snapshot/share_session.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "coord/commit_vote.h"
#include "coord/peer_error.h"
#include "core/little_endian.h"
#include "plan/message.h"
#include "plan/world_plan.h"

namespace torchsnapshot {
namespace {

/// Lists that are longer, of all ranks together, are not exchanged: then each rank reads for itself.
constexpr std::uint64_t kMaxListBytes = 256ULL << 20;
constexpr std::size_t kSizeBytes = sizeof(std::uint64_t);

/// What goes round at once, and the budget it takes: two rounds of buffers, and as much that is read ahead.
struct RoundSize {
  std::uint64_t round_bytes;
  std::uint64_t budget;
};
constexpr RoundSize kTiny{4ULL << 20, 0};
constexpr RoundSize kSmall{16ULL << 20, 64ULL << 20};
constexpr RoundSize kLarge{64ULL << 20, 256ULL << 20};

std::string serialize(const std::vector<Corruption>& found) {
  MessageWriter writer;
  for (const Corruption& corruption : found) {
    writer.text(corruption.location);
    writer.number(corruption.range.begin);
    writer.number(corruption.range.end);
    writer.number(corruption.expected);
    writer.number(corruption.found);
  }
  return writer.take();
}

void parse_corruptions(std::string_view bytes, std::vector<Corruption>& found) {
  MessageReader reader(bytes, Error(ErrorCode::kInternal, "what a rank found damaged is cut off"));
  while (!reader.at_end()) {
    Corruption corruption;
    corruption.location = reader.text();
    corruption.range.begin = reader.number();
    corruption.range.end = reader.number();
    corruption.expected = reader.number<std::uint32_t>();
    corruption.found = reader.number<std::uint32_t>();
    found.push_back(std::move(corruption));
  }
}

}  // namespace

ShareSession::Words ShareSession::meet_with(const Words& mine) {
  const std::vector<std::uint64_t> sums = ranks_.all_sum({mine.begin(), mine.end()});
  Words all{};
  std::copy(sums.begin(), sums.end(), all.begin());
  if (all[0] != 0) {
    is_over_ = true;
    if (mine[0] == 0) throw PeerFailed();
  }
  return all;
}

std::vector<std::string> ShareSession::exchange(const std::string& mine) {
  std::string size;
  put_little_endian(size, static_cast<std::uint64_t>(mine.size()));
  std::uint64_t longest = 0;
  for (const std::string& bytes : ranks_.all_gather(size, kSizeBytes)) {
    longest = std::max(longest, get_little_endian<std::uint64_t>(bytes));
  }
  if (longest > kMaxListBytes / static_cast<std::uint64_t>(ranks_.world_size())) return {};
  return ranks_.all_gather(mine, longest);
}

bool ShareSession::begin(bool wants_to_share, std::uint64_t budget) {
  const std::uint64_t refuses = wants_to_share ? 0 : 1;
  const std::uint64_t is_not_large = budget < kLarge.budget ? 1 : 0;
  const std::uint64_t is_not_small = budget < kSmall.budget ? 1 : 0;
  const Words all = meet_with({0, refuses, is_not_large, is_not_small});
  is_sharing_ = all[1] == 0;
  is_over_ = !is_sharing_;
  round_bytes_ = (all[3] != 0 ? kTiny : all[2] != 0 ? kSmall : kLarge).round_bytes;
  return is_sharing_;
}

ReadWants ShareSession::agree(const ReadWants& mine) {
  const Digest digest = digest_of(mine);
  const auto term = [this](std::uint64_t value) { return equal_term(value, ranks_.rank(), ranks_.world_size()); };
  const Words all = meet_with({0, term(digest.high), term(digest.low)});
  if (all[1] == 0 && all[2] == 0) return mine;
  std::vector<ReadWants> lists;
  for (const std::string& bytes : exchange(torchsnapshot::serialize(mine))) lists.push_back(parse_wants(bytes));
  return common_wants(lists);
}

void ShareSession::meet(bool is_last, std::vector<Corruption>& found) {
  const Words all = meet_with({0, is_last ? found.size() : 0});
  if (!is_last) return;
  std::vector<Corruption> theirs;
  if (all[1] != 0) {
    const auto lists = exchange(serialize(found));
    if (lists.empty()) throw Error(ErrorCode::kCorrupt, "there is more damage than the ranks can tell each other");
    for (std::size_t rank = 0; rank < lists.size(); ++rank) {
      if (static_cast<std::int64_t>(rank) != ranks_.rank()) parse_corruptions(lists[rank], theirs);
    }
  }
  found = std::move(theirs);
}

void ShareSession::refuse() noexcept {
  if (std::exchange(is_over_, true)) return;
  try {
    meet_with({1});
  } catch (const std::exception&) {  // no more can be done; the end tells the error
    return;
  }
}

void end_restore(Coordinator& ranks, const std::exception_ptr& error) {
  std::exception_ptr own = error;
  std::string text;
  try {
    if (own) std::rethrow_exception(own);
  } catch (const PeerFailed&) {
    own = nullptr;
  } catch (...) {
    text = encode_error(own);
  }
  try {
    agree_all_well(ranks, text);
  } catch (...) {
    if (!own) throw;
  }
  if (own) std::rethrow_exception(own);
  if (error) throw Error(ErrorCode::kInternal, "a rank has failed, and does not say why");
}

void refuse_world_restore(Coordinator& ranks, const Error& error) {
  ShareSession(ranks).refuse();
  end_restore(ranks, std::make_exception_ptr(error));
}

}  // namespace torchsnapshot
