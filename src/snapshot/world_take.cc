// The exchanges of a take. Each rank brings what it has, errors included, so that no rank waits for one that failed.
//  1. All to all, some 150 bytes each: is this rank well; the take's id (rank 0's counts); digests of what it may have
//     in common with others (plan/world_plan.h).
//     If a rank is not well, one more tells why, and the take ends on all.
//  2. Only if the replicated leaves differ: all to all, the lists of them.
//  3. To rank 0: the entries of this rank's plan, or why there are none.
// Then each rank writes, and the vote (coord/commit_vote.cc) ends the take.

#include "snapshot/world_take.h"

#include <algorithm>
#include <exception>
#include <random>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "coord/peer_error.h"
#include "core/path_codec.h"
#include "plan/world_plan.h"
#include "state/flatten.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot {
namespace {

constexpr std::size_t kTakeIdDigits = 32;
constexpr std::size_t kSizeDigits = 16;
constexpr std::size_t kMaxErrorBytes = 64 << 10;

/// What a rank says in the first exchange.
struct Greeting {
  std::size_t error_bytes = 0;  ///< 0: it is well
  std::size_t list_bytes = 0;   ///< of its list of replicated leaves
  std::string take_id;
  ShareSummary shares;
};

constexpr std::size_t kMaxGreetingBytes = 2 * kSizeDigits + kTakeIdDigits + kMaxSummaryBytes;

std::string digits(std::size_t number) {
  std::string text = std::to_string(number);
  return std::string(kSizeDigits - text.size(), '0') + text;
}

std::string serialize(const Greeting& greeting) {
  return digits(greeting.error_bytes) + digits(greeting.list_bytes) + greeting.take_id + serialize(greeting.shares);
}

Greeting parse_greeting(std::string_view bytes) {
  if (bytes.size() < 2 * kSizeDigits + kTakeIdDigits) throw Error(ErrorCode::kCorrupt, "a greeting is cut off");
  Greeting greeting;
  greeting.error_bytes = std::stoull(std::string(bytes.substr(0, kSizeDigits)));
  greeting.list_bytes = std::stoull(std::string(bytes.substr(kSizeDigits, kSizeDigits)));
  greeting.take_id = bytes.substr(2 * kSizeDigits, kTakeIdDigits);
  greeting.shares = parse_summary(bytes.substr(2 * kSizeDigits + kTakeIdDigits));
  return greeting;
}

/// The first exchange. Throws the error of the first rank that is not well.
std::vector<Greeting> greet(Coordinator& ranks, Greeting mine, const std::string& error) {
  const std::string text = error.substr(0, kMaxErrorBytes);
  mine.error_bytes = text.size();
  if (mine.take_id.empty()) mine.take_id = std::string(kTakeIdDigits, '0');
  std::vector<Greeting> all;
  std::size_t longest_error = 0;
  for (const std::string& bytes : ranks.all_gather(serialize(mine), kMaxGreetingBytes)) {
    all.push_back(parse_greeting(bytes));
    longest_error = std::max(longest_error, all.back().error_bytes);
  }
  if (longest_error == 0) return all;
  const auto texts = ranks.all_gather(text, longest_error);
  for (std::size_t rank = 0; rank < texts.size(); ++rank) {
    if (!texts[rank].empty()) throw decode_error(static_cast<std::int64_t>(rank), texts[rank]);
  }
  return all;
}

std::string some_of(const std::vector<std::string>& paths) {
  constexpr std::size_t kNamed = 5;
  std::string text;
  for (std::size_t i = 0; i < paths.size() && i < kNamed; ++i) text += (i == 0 ? "'" : ", '") + paths[i] + "'";
  if (paths.size() > kNamed) text += " and " + std::to_string(paths.size() - kNamed) + " more";
  return text;
}

/// The leaves that all ranks count as replicated. The second exchange, if there is need of it.
std::vector<ReplicatedLeaf> agree_on_replicated(Coordinator& ranks, const std::vector<Greeting>& greetings,
                                                const LocalShares& shares, const IoOptions& io) {
  std::size_t longest = 0;
  bool alike = true;
  for (const Greeting& greeting : greetings) {
    longest = std::max(longest, greeting.list_bytes);
    alike = alike && greeting.shares.replicated == greetings.front().shares.replicated;
  }
  if (alike) return shares.replicated;
  std::vector<std::vector<ReplicatedLeaf>> lists;
  for (const std::string& bytes : ranks.all_gather(serialize(shares.replicated), longest)) {
    lists.push_back(parse_leaves(bytes));
  }
  CommonLeaves common = common_leaves(lists);
  if (ranks.rank() == 0 && io.on_notice) {
    if (!common.other_value.empty()) {
      io.on_notice("replicated, but not the same on all ranks; what one of them has is saved: " +
                   some_of(common.other_value));
    }
    if (!common.other_kind.empty()) {
      io.on_notice("named as replicated, but of another type or shape on some ranks, so each rank's own is saved: " +
                   some_of(common.other_kind));
    }
  }
  return std::move(common.leaves);
}

constexpr char kEntries = 'M';
constexpr char kFailure = 'E';

/// The third exchange: on rank 0, the manifests of all ranks.
std::vector<Manifest> gather_manifests(Coordinator& ranks, const Manifest* mine, const std::string& error) {
  std::string message;
  if (mine == nullptr) {
    message = kFailure + error;
  } else if (ranks.rank() != 0) {
    SnapshotMetadata part{.version = TORCHSNAPSHOT_VERSION, .world_size = ranks.world_size(), .manifest = *mine};
    message = kEntries + write_metadata(part);
  }
  const auto messages = ranks.gather(message);
  std::vector<Manifest> manifests;
  for (std::size_t rank = 0; rank < messages.size(); ++rank) {
    const std::string_view text = messages[rank];
    if (!text.empty() && text.front() == kFailure) throw decode_error(static_cast<std::int64_t>(rank), text.substr(1));
    if (rank == 0) {
      manifests.push_back(*mine);
    } else if (text.empty()) {
      throw Error(ErrorCode::kInternal, "rank " + std::to_string(rank) + " sent no entries");
    } else {
      manifests.push_back(parse_metadata(text.substr(1)).manifest);
    }
  }
  return manifests;
}

}  // namespace

std::string make_take_id() {
  std::random_device random;
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string id;
  for (int word = 0; word < 4; ++word) {
    std::uint32_t bits = random();
    for (int digit = 0; digit < 8; ++digit, bits >>= 4U) id += kDigits[bits & 15U];
  }
  return id;
}

FlatState flatten_app(const AppState& app) {
  FlatState state;
  std::unordered_set<std::string_view> keys;
  for (const auto& [key, value] : app) {
    if (!keys.insert(key).second) throw Error(ErrorCode::kInvalidArgument, "app state has the key '" + key + "' twice");
    flatten(value, encode_component(key), state);
  }
  return state;
}

WritePlanOptions plan_options(const TakeOptions& options, const std::string& take_id) {
  WritePlanOptions plan;
  plan.take_id = take_id;
  plan.replicated = options.replicated;
  plan.max_chunk_bytes = options.max_chunk_bytes;
  plan.max_shard_bytes = options.max_shard_bytes;
  plan.slab_bytes = options.slab_bytes;
  plan.batching = options.batching;
  return plan;
}

void refuse_world_take(Coordinator& ranks, const std::string& error) {
  try {
    greet(ranks, {}, error);
  } catch (const Error&) {  // this rank's, told back, or that of an exchange that failed for its own reasons
    return;
  }
}

WorldTake plan_world_take(Coordinator& ranks, const AppState& app, const TakeOptions& options) {
  Greeting mine;
  FlatState state;
  LocalShares shares;
  try {
    state = flatten_app(app);
    shares = find_shares(state, options.replicated);
    mine.list_bytes = serialized_size(shares.replicated);
    mine.take_id = make_take_id();
    mine.shares = summary_of(shares);
  } catch (const Error& error) {
    refuse_world_take(ranks, encode_error(error));
    throw;
  }
  const std::vector<Greeting> greetings = greet(ranks, std::move(mine), {});
  WorldTake take;
  take.take_id = greetings.front().take_id;
  take.vote = std::make_unique<CommitVote>(ranks, take.take_id, options.commit_timeout);
  try {
    const std::vector<ReplicatedLeaf> replicated = agree_on_replicated(ranks, greetings, shares, options.io);
    std::vector<ShareSummary> summaries;
    summaries.reserve(greetings.size());
    for (const Greeting& greeting : greetings) summaries.push_back(greeting.shares);
    const DividedState part = divide(state, shares, replicated, summaries, ranks.rank());
    WritePlanOptions limits = plan_options(options, take.take_id);
    limits.rank = ranks.rank();
    limits.world_size = ranks.world_size();
    limits.replicated.clear();  // decided already
    std::exception_ptr failure;
    try {
      take.plan = plan_write(part.state, limits);
    } catch (const Error& error) {
      failure = std::current_exception();
      gather_manifests(ranks, nullptr, encode_error(error));
    }
    if (failure) std::rethrow_exception(failure);
    const auto manifests = gather_manifests(ranks, &take.plan.manifest, {});
    if (ranks.rank() == 0) take.manifest = merge_manifests(manifests, replicated);
  } catch (...) {
    take.vote->fail(std::current_exception());
    throw;
  }
  return take;
}

}  // namespace torchsnapshot
