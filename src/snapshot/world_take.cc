// The exchanges of a take. Each rank brings what it has, errors included, so that no rank waits for one that failed.
//  1. Sums over all ranks, some 400 bytes however many there are: how many are not well; a new take's id (rank 0's);
//     whether all have in common what they may have (plan/world_plan.h); whether all have the plan of the last take,
//     which they remember (plan_memory.h), entries and all.
//     If a rank is not well, one more tells why, and the take ends on all.
//  If all have the plan of the last take, that is it, but for values (a step, a learning rate): if any has other ones,
//     2. to rank 0: the values of those that have.
//  Else
//     2. only if the replicated leaves differ: all to all, the lists of them;
//     3. only if ranks that hold the same shards do not describe them alike: all to all, digests of them;
//     4. to rank 0: the entries of this rank's plan, or why there are none. With many ranks first the digests of their
//        forms (manifest/compact_part.h) with what else is short, and one rank for each form sends it.
// Then each rank writes, and the vote (coord/commit_vote.cc) ends the take. Rank 0 merges the entries meanwhile.
// The take's id of a plan that is taken again follows from the id that it was first taken with, and the number of takes
// since; so all ranks know it.

#include "snapshot/world_take.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <exception>
#include <random>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "coord/counted.h"
#include "coord/peer_error.h"
#include "core/path_codec.h"
#include "manifest/compact_stream.h"
#include "plan/world_parts.h"
#include "plan/world_plan.h"
#include "snapshot/plan_memory.h"
#include "state/flatten.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot {
namespace {

constexpr std::size_t kMaxErrorBytes = 64 << 10;
constexpr std::size_t kMaxErrorsBytes = 64 << 20;
constexpr std::int64_t kTakeIdWords = 2;

std::string hex_of(std::uint64_t high, std::uint64_t low) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::uint64_t word : {high, low}) {
    for (int shift = 60; shift >= 0; shift -= 4) text += kDigits[(word >> static_cast<unsigned>(shift)) & 15U];
  }
  return text;
}

/// How many ranks have messages of which size, in powers of two: so that a sum tells the largest, nearly.
class SizeClasses {
 public:
  static constexpr std::size_t kWords = 16;

  /// At most 2^32 ranks, and 2^31 bytes.
  void add(std::size_t bytes) {
    if (bytes == 0) return;
    const auto number = std::min<std::size_t>(static_cast<std::size_t>(std::bit_width(bytes - 1)), 2 * kWords - 1);
    words[number / 2] += std::uint64_t{1} << (32 * (number % 2));
  }
  /// No message is longer; 0 when there is none.
  [[nodiscard]] std::size_t limit() const {
    for (std::size_t number = 2 * kWords; number-- > 0;) {
      if (((words[number / 2] >> (32 * (number % 2))) & 0xFFFFFFFFU) != 0) return std::size_t{1} << number;
    }
    return 0;
  }

  std::array<std::uint64_t, kWords> words{};
};

/// What a rank says in the first exchange; after it, the sums of all.
struct Greeting {
  std::uint64_t unwell = 0;
  std::uint64_t changed = 0;                          ///< has not the plan of the last take
  std::array<std::uint64_t, 2> memory{};              ///< 0 when all remember the same take
  std::array<std::uint64_t, kTakeIdWords> take_id{};  ///< rank 0's
  ShareSums shares;
  SizeClasses lists;   ///< of replicated leaves
  SizeClasses values;  ///< that rank 0 has not; of a rank that is not well: its error

  [[nodiscard]] std::vector<std::uint64_t> words() const {
    std::vector<std::uint64_t> all{unwell, changed};
    const auto add = [&all](const auto& some) { all.insert(all.end(), some.begin(), some.end()); };
    add(memory);
    add(take_id);
    add(shares.form);
    add(shares.content);
    add(shares.groups);
    add(lists.words);
    add(values.words);
    return all;
  }
  void read(const std::vector<std::uint64_t>& all) {
    std::size_t at = 2;
    const auto get = [&](auto& some) {
      for (auto& word : some) word = all.at(at++);
    };
    unwell = all.at(0);
    changed = all.at(1);
    get(memory);
    get(take_id);
    get(shares.form);
    get(shares.content);
    get(shares.groups);
    get(lists.words);
    get(values.words);
  }
};

bool is_zero(const std::array<std::uint64_t, 2>& sum) {
  return sum[0] == 0 && sum[1] == 0;
}

/// The first exchange: the sums. Throws the error of the first rank that is not well.
Greeting greet(Coordinator& ranks, Greeting mine, const std::string& error) {
  // Every rank may send as much, so that all errors together stay within bounds.
  const std::size_t room = std::max<std::size_t>(kMaxErrorsBytes / static_cast<std::size_t>(ranks.world_size()), 512);
  const std::string text = error.substr(0, std::min(kMaxErrorBytes, room));
  if (!text.empty()) {
    mine.unwell = 1;
    mine.values = {};
    mine.values.add(text.size());
  }
  Greeting all;
  all.read(ranks.all_sum(mine.words()));
  if (all.unwell == 0) return all;
  const auto texts = ranks.all_gather(text, std::max(all.values.limit(), text.size()));
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

/// The leaves that all ranks count as replicated; an exchange, if there is need of it.
std::vector<ReplicatedLeaf> agree_on_replicated(Coordinator& ranks, const Greeting& all, const LocalShares& shares,
                                                const IoOptions& io) {
  if (is_zero(all.shares.form) && is_zero(all.shares.content)) return shares.replicated;
  std::vector<std::vector<ReplicatedLeaf>> lists;
  for (const std::string& bytes : ranks.all_gather(serialize(shares.replicated), all.lists.limit())) {
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

/// The groups that all their members describe alike; an exchange, if there is need of it.
std::vector<bool> agree_on_groups(Coordinator& ranks, const Greeting& all, const LocalShares& shares) {
  if (is_zero(all.shares.groups)) return std::vector<bool>(shares.groups.size(), true);
  std::vector<ShareSummary> summaries;
  for (const std::string& bytes : ranks.all_gather(serialize(summary_of(shares)), kMaxSummaryBytes)) {
    summaries.push_back(parse_summary(bytes));
  }
  return agreed_groups(shares, summaries);
}

constexpr char kEntries = 'M';
constexpr char kFailure = 'E';

/// On rank 0, the parts of all ranks; null elsewhere. `mine`: null when there are none, because of `error`.
std::shared_ptr<const WorldParts> gather_parts(Coordinator& ranks, const CompactPart* mine, const std::string& error) {
  const std::string message = mine == nullptr ? kFailure + error : kEntries + serialize(*mine);
  const auto messages = ranks.gather(ranks.rank() == 0 && mine != nullptr ? std::string() : message);
  if (ranks.rank() != 0) return nullptr;
  auto parts = std::make_shared<WorldParts>(messages.size());
  for (std::size_t rank = 0; rank < messages.size(); ++rank) {
    const std::string_view text = messages[rank];
    if (!text.empty() && text.front() == kFailure) throw decode_error(static_cast<std::int64_t>(rank), text.substr(1));
    if (rank == 0) {
      parts->set(0, *mine);
    } else if (text.empty()) {
      throw Error(ErrorCode::kInternal, "rank " + std::to_string(rank) + " sent no entries");
    } else {
      parts->set(rank, parse_part(text.substr(1)));
    }
  }
  return parts;
}

/// The same for many ranks: digests first.
std::shared_ptr<const WorldParts> gather_many_parts(Coordinator& ranks, const CompactPart* mine,
                                                    const std::string& error) {
  const std::string rest = mine == nullptr ? error : serialize_rest(*mine);
  const PartNotice own{mine != nullptr, mine == nullptr ? Digest() : digest_of_bytes(mine->form), rest.size()};
  std::vector<PartNotice> notices;
  std::vector<std::string> rests;  // most are so short that they go along
  const std::string along = rest.size() <= PartNotice::kShortRest ? rest : std::string();
  for (const std::string& bytes :
       ranks.gather_within(serialize(own) + along, PartNotice::kBytes + PartNotice::kShortRest)) {
    notices.push_back(parse_notice(std::string_view(bytes).substr(0, PartNotice::kBytes)));
    rests.push_back(bytes.substr(PartNotice::kBytes));
  }
  const PartCall call = parse_call(ranks.broadcast(ranks.rank() == 0 ? serialize(call_for(notices)) : std::string()));
  if (call.longest_rest != 0) {
    auto longer = ranks.gather_within(along.empty() ? rest : std::string(), call.longest_rest);
    for (std::size_t rank = 0; rank < longer.size(); ++rank) {
      if (!longer[rank].empty()) rests[rank] = std::move(longer[rank]);
    }
  }
  const auto forms = call.senders.empty()
                         ? std::vector<std::string>()
                         : ranks.gather_from(call.senders, mine == nullptr ? std::string() : mine->form);
  if (ranks.rank() != 0) return nullptr;
  for (std::size_t rank = 0; rank < notices.size(); ++rank) {
    if (!notices[rank].is_well) throw decode_error(static_cast<std::int64_t>(rank), rests[rank]);
  }
  return std::make_shared<const WorldParts>(put_together(*mine, notices, call, rests, forms));
}

/// The id of the next take with a plan that is remembered.
std::string next_take_id(const TakeMemory& memory) {
  Digester digester;
  for (int round = 0; round < 2; ++round) {
    digester.add(std::string_view(memory.seed));
    digester.add(memory.count + 1);
  }
  const Digest digest = digester.digest();
  return hex_of(digest.high, digest.low);
}

Digest digest_of_plan(const CompactPart& part) {
  Digester digester;
  digester.add(std::string_view(part.form));
  digester.add(std::string_view(part.places));
  return digester.digest();
}

/// This rank's part of a take on its way.
class Planner {
 public:
  Planner(Coordinator& ranks, const AppState& app, const TakeOptions& options)
      : ranks_(ranks), options_(options), state_(flatten_app(app)), shares_(find_shares(state_, options.replicated)) {
    Digester input;
    const Digest form = form_of(shares_);
    input.add(form.high);
    input.add(form.low);
    for (const std::uint64_t limit : {options.max_chunk_bytes, options.max_shard_bytes, options.slab_bytes}) {
      input.add(limit);
    }
    input.add(static_cast<std::uint64_t>(options.batching));
    input_ = input.digest();
  }

  /// What this rank says first. Plans as before, if the input is as before.
  Greeting greeting(const TakeMemory* memory) {
    Greeting mine;
    mine.changed = 1;
    if (memory != nullptr && memory->input == input_) plan_again(*memory, mine);
    Digester remembered;
    if (memory != nullptr) {
      remembered.add(std::string_view(memory->seed));
      remembered.add(memory->count);
    }
    const std::int64_t rank = ranks_.rank();
    const std::int64_t size = ranks_.world_size();
    const Digest digest = remembered.digest();
    mine.memory = {equal_term(digest.high, rank, size), equal_term(digest.low, rank, size)};
    if (rank == 0) mine.take_id = fresh_id();
    mine.shares = sums_of(shares_, rank, size);
    mine.lists.add(serialized_size(shares_.replicated));
    return mine;
  }

  /// The plan of the last take holds for all.
  void repeat(WorldTake& take, const Greeting& all, TakeMemory& memory) {
    ++memory.count;
    take.is_unchanged = true;
    take.plan = std::move(plan_);
    const bool has_new = part_.values != memory.values;
    memory.values = std::move(part_.values);
    if (all.values.limit() != 0) {
      // A byte in front tells new values that are empty from none.
      const bool sends = has_new && ranks_.rank() != 0;
      const auto news = ranks_.gather_within(sends ? kEntries + memory.values : std::string(), all.values.limit());
      if (ranks_.rank() == 0) memory.parts = with_values(*memory.parts, news);
    }
    if (ranks_.rank() == 0 && has_new) memory.parts = with_values(*memory.parts, {kEntries + memory.values});
    take.parts = memory.parts;
    take.replicated = memory.replicated;
  }

  /// A new plan.
  std::shared_ptr<TakeMemory> agree(WorldTake& take, const Greeting& all) {
    auto memory = std::make_shared<TakeMemory>();
    memory->seed = take.take_id;
    memory->input = input_;
    memory->replicated = agree_on_replicated(ranks_, all, shares_, options_.io);
    memory->agreed = agree_on_groups(ranks_, all, shares_);
    const auto gather = ranks_.world_size() > options_.direct_ranks ? gather_many_parts : gather_parts;
    std::exception_ptr failure;
    try {
      make_plan(*memory, take.take_id);
    } catch (const Error& error) {
      failure = std::current_exception();
      gather(ranks_, nullptr, encode_error(error));
    }
    if (failure) std::rethrow_exception(failure);
    memory->parts = gather(ranks_, &part_, {});
    memory->part = digest_of_plan(part_);
    memory->values = std::move(part_.values);
    take.plan = std::move(plan_);
    take.parts = memory->parts;
    take.replicated = memory->replicated;
    return memory;
  }

 private:
  void plan_again(const TakeMemory& memory, Greeting& mine) {
    try {
      make_plan(memory, next_take_id(memory));
    } catch (const Error&) {
      return;  // it comes again when the plan is made anew, and is told then
    }
    if (digest_of_plan(part_) != memory.part) return;
    mine.changed = 0;
    if (ranks_.rank() != 0 && part_.values != memory.values) mine.values.add(part_.values.size() + 1);
  }

  void make_plan(const TakeMemory& memory, const std::string& take_id) {
    const DividedState part =
        divide(state_, shares_, memory.replicated, memory.agreed, ranks_.rank(), ranks_.world_size());
    WritePlanOptions limits = plan_options(options_, take_id);
    limits.rank = ranks_.rank();
    limits.world_size = ranks_.world_size();
    limits.replicated.clear();  // decided already
    plan_ = plan_write(part.state, limits);
    part_ = encode_part(plan_.manifest, limits.rank, take_id);
  }

  static std::shared_ptr<const WorldParts> with_values(const WorldParts& parts, const std::vector<std::string>& news) {
    auto changed = std::make_shared<WorldParts>(parts);
    for (std::size_t rank = 0; rank < news.size(); ++rank) {
      if (!news[rank].empty()) changed->set_values(rank, news[rank].substr(1));
    }
    return changed;
  }

  static std::array<std::uint64_t, kTakeIdWords> fresh_id() {
    std::random_device random;
    const auto word = [&random] { return std::uint64_t{random()} << 32U | random(); };
    return {word(), word()};
  }

  Coordinator& ranks_;
  const TakeOptions& options_;
  FlatState state_;
  LocalShares shares_;
  Digest input_;
  WritePlan plan_;
  CompactPart part_;
};

}  // namespace

std::string make_take_id() {
  std::random_device random;
  const auto word = [&random] { return std::uint64_t{random()} << 32U | random(); };
  const std::uint64_t high = word();
  return hex_of(high, word());
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

WorldTake plan_world_take(Coordinator& coordinator, const AppState& app, const TakeOptions& options) {
  CountedCoordinator ranks(coordinator);
  std::optional<Planner> planner;
  Greeting mine;
  const std::shared_ptr<TakeMemory> memory = std::exchange(coordinator.memory(), nullptr);
  try {
    planner.emplace(ranks, app, options);
    mine = planner->greeting(memory.get());
  } catch (const Error& error) {
    refuse_world_take(ranks, encode_error(error));
    throw;
  }
  const Greeting all = greet(ranks, mine, {});
  const bool is_unchanged =
      all.changed == 0 && is_zero(all.memory) && is_zero(all.shares.form) && is_zero(all.shares.content);
  WorldTake take;
  take.take_id = is_unchanged ? next_take_id(*memory) : hex_of(all.take_id[0], all.take_id[1]);
  take.vote = std::make_unique<CommitVote>(coordinator, take.take_id, options.commit_timeout);
  try {
    if (is_unchanged) {
      planner->repeat(take, all, *memory);
      coordinator.memory() = memory;
    } else {
      coordinator.memory() = planner->agree(take, all);
    }
  } catch (...) {
    take.vote->fail(std::current_exception());
    throw;
  }
  if (options.on_planned) options.on_planned({take.is_unchanged, ranks.figures()});
  return take;
}

}  // namespace torchsnapshot
