// Planning for very many ranks, simulated in one process: scale_simulation RANKS [PLANNED] writes a line of JSON.
//
// Times are CPU seconds of one thread. Every rank's part is what the engine itself does in plan_world_take
// (src/snapshot/world_take.cc), by the same pure functions; only the exchanges are replaced: messages are kept until
// rank 0 has its turn. Ranks beyond PLANNED (spread evenly over the world) send what the planned rank before them has
// sent: as large, and as costly to put together.
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <unordered_set>
#include <vector>

#include "llama.h"
#include "manifest/metadata_seal.h"
#include "manifest/rank_view.h"
#include "plan/world_parts.h"
#include "plan/world_plan.h"
#include "plan/write_plan.h"
#include "snapshot/world_take.h"
#include "torchsnapshot/manifest.h"

namespace {

using namespace torchsnapshot;  // NOLINT(google-build-using-namespace)
using scale::Model;
using scale::World;

constexpr std::int64_t kTp = 8;
constexpr std::int64_t kFsdp = 128;
/// Beyond it the manifest of all is not made: its entries would fill the memory.
constexpr std::size_t kMostEntries = 6'000'000;
constexpr std::size_t kGreetingBytes = 50 * 8;  // the sums of the first exchange
const std::string kFirstTake(32, 'a');
const std::string kNextTake(32, 'b');

/// Of this thread: what else runs on the machine does not count.
double now() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

double peak_gib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / (1 << 20);
}

/// Seconds of the ranks.
struct Times {
  std::vector<double> all;
  void add(double seconds) { all.push_back(seconds); }
  [[nodiscard]] double median() {
    std::sort(all.begin(), all.end());
    return all.empty() ? 0 : all[all.size() / 2];
  }
  [[nodiscard]] double most() const { return all.empty() ? 0 : *std::max_element(all.begin(), all.end()); }
};

/// What one rank plans, and how long it takes: from its state to its part of the entries.
struct Planned {
  LocalShares shares;
  ShareSums sums;
  WritePlan plan;
  CompactPart part;
  Digest form;
  double seconds = 0;
};

Planned plan_rank(const World& world, const Model& model, std::int64_t rank, std::int64_t step,
                  const std::string& take_id) {
  const AppState app = scale::state_of(world, model, rank, step);  // the program's, not ours to count
  TakeOptions options;
  options.replicated = {"progress/**"};
  Planned planned;
  const double began = now();
  const FlatState state = flatten_app(app);
  planned.shares = find_shares(state, options.replicated);
  planned.sums = sums_of(planned.shares, rank, world.size());
  const std::vector<bool> agreed(planned.shares.groups.size(), true);
  const DividedState mine = divide(state, planned.shares, planned.shares.replicated, agreed, rank, world.size());
  WritePlanOptions limits = plan_options(options, take_id);
  limits.rank = rank;
  limits.world_size = world.size();
  limits.replicated.clear();
  planned.plan = plan_write(mine.state, limits);
  planned.part = encode_part(planned.plan.manifest, rank, take_id);
  planned.form = digest_of_bytes(planned.part.form);
  planned.seconds = now() - began;
  return planned;
}

void add_up(ShareSums& total, const ShareSums& mine) {
  for (std::size_t i = 0; i < 2; ++i) {
    total.form[i] += mine.form[i];
    total.content[i] += mine.content[i];
    total.groups[i] += mine.groups[i];
  }
}

bool is_zero(const ShareSums& sums) {
  return sums.form == sums.content && sums.content == sums.groups && sums.groups == std::array<std::uint64_t, 2>{};
}

void number(const char* name, double value) {
  std::printf("\"%s\": %.6g, ", name, value);
}

[[noreturn]] void fail(const char* why) {
  std::fprintf(stderr, "scale_simulation: %s\n", why);
  std::exit(1);
}

void simulate(const World& world, std::int64_t planned_ranks) {
  const Model model;
  const auto size = static_cast<std::size_t>(world.size());
  const std::size_t step = std::max<std::size_t>(1, size / static_cast<std::size_t>(planned_ranks));

  // A new plan. Every rank but the first.
  std::vector<PartNotice> notices(size);
  std::vector<std::string> rests(size);
  std::vector<std::string> forms(size);  // only of those who may be called for one
  Times others;
  Times again;
  ShareSums total;
  std::size_t own_entries = 0;
  std::uint64_t rest_bytes = 0;
  std::unordered_set<std::string> seen;
  for (std::size_t rank = 1; rank < size; ++rank) {
    if (rank % step != 0 && rank != 1) {
      notices[rank] = notices[rank - 1];
      rests[rank] = rests[rank - 1];
      rest_bytes += rests[rank].size();
      continue;
    }
    Planned planned = plan_rank(world, model, static_cast<std::int64_t>(rank), 1, kFirstTake);
    others.add(planned.seconds);
    add_up(total, planned.sums);
    rests[rank] = serialize_rest(planned.part);
    notices[rank] = {true, planned.form, rests[rank].size()};
    rest_bytes += rests[rank].size();
    own_entries = std::max(own_entries, planned.plan.manifest.size());
    if (seen.insert(serialize(PartNotice{true, planned.form, 0})).second) forms[rank] = std::move(planned.part.form);
  }

  // Rank 0: its own part, and then those of all.
  const Planned first = plan_rank(world, model, 0, 1, kFirstTake);
  add_up(total, first.sums);
  if (step == 1 && !is_zero(total)) fail("the ranks do not agree");
  std::vector<std::string> told;
  told.reserve(size);
  for (const PartNotice& notice : notices) told.push_back(serialize(notice));
  const double received = now();
  rests[0] = serialize_rest(first.part);
  notices[0] = {true, first.form, rests[0].size()};
  std::vector<PartNotice> parsed;
  parsed.reserve(size);
  for (const std::string& bytes : told) parsed.push_back(parse_notice(bytes));
  parsed[0] = notices[0];
  const PartCall call = call_for(parsed);
  const std::string call_bytes = serialize(call);
  std::vector<std::string> sent;
  std::uint64_t form_bytes = 0;
  for (const std::int64_t sender : call.senders) {
    sent.push_back(forms[static_cast<std::size_t>(sender)]);
    form_bytes += sent.back().size();
    if (sent.back().empty()) fail("a form was called for that no rank has");
  }
  const WorldParts parts = put_together(first.part, parsed, call, rests, sent);
  const double rank0 = first.seconds + (now() - received);

  // The same plan again: other ranks compare what they get with what they had.
  for (std::size_t rank = 1; rank < size; rank += std::max<std::size_t>(step, size / 64)) {
    const Planned planned = plan_rank(world, model, static_cast<std::int64_t>(rank), 2, kNextTake);
    again.add(planned.seconds);
    if (rank % step == 0 && planned.form != notices[rank].form) fail("an unchanged plan has another form");
    if (rank % step == 0 && serialize_rest(planned.part) != rests[rank]) fail("an unchanged plan has other values");
  }
  const Planned first_again = plan_rank(world, model, 0, 2, kNextTake);
  if (first_again.form != first.form || first_again.part.places != first.part.places) fail("rank 0's plan changed");

  std::printf("{");
  number("ranks", static_cast<double>(size));
  number("planned_ranks", static_cast<double>(others.all.size() + 1));
  number("sharded_tensors", static_cast<double>(scale::sharded_tensors(model)));
  number("entries_of_a_rank", static_cast<double>(own_entries));
  number("forms", static_cast<double>(parts.forms()));
  number("rank0_seconds", rank0);
  number("rank0_own_seconds", first.seconds);
  number("rank0_again_seconds", first_again.seconds);
  number("other_median_seconds", others.median());
  number("other_most_seconds", others.most());
  number("again_median_seconds", again.median());
  number("again_most_seconds", again.most());
  number("greeting_bytes", kGreetingBytes);
  number("notice_bytes", PartNotice::kBytes + PartNotice::kShortRest);
  number("call_bytes", static_cast<double>(call_bytes.size()));
  number("longest_rest_bytes", static_cast<double>(call.longest_rest));
  number("all_rest_bytes", call.longest_rest == 0 ? 0 : static_cast<double>(rest_bytes));
  number("form_senders", static_cast<double>(call.senders.size()));
  number("form_bytes", static_cast<double>(form_bytes));
  number("parts_bytes", static_cast<double>(parts.bytes()));

  // The manifest of all, as far as it fits; a world of one replica stands for it beyond.
  if (step == 1 && size * own_entries <= kMostEntries) {
    double at = now();
    SnapshotMetadata metadata{.version = "0", .world_size = world.size(), .manifest = {}};
    metadata.manifest = parts.merge(kFirstTake, first.shares.replicated);
    number("merge_seconds", now() - at);
    number("entries", static_cast<double>(metadata.manifest.size()));
    at = now();
    const std::string text = write_sealed_metadata(metadata);
    number("json_seconds", now() - at);
    number("json_bytes", static_cast<double>(text.size()));
    Times views;
    for (const std::int64_t rank : {std::int64_t{0}, world.size() / 2, world.size() - 1, world.size() + 5}) {
      at = now();
      const RankView view(metadata, rank);
      views.add(now() - at);
      if (view.find("model/norm.weight") == nullptr) fail("a rank does not see the model");
    }
    number("rank_view_most_seconds", views.most());
  }
  std::printf("\"peak_gib\": %.3g}\n", peak_gib());
}

}  // namespace

int main(int argc, char** argv) {
  const long ranks = argc > 1 ? std::atol(argv[1]) : 1024;
  const long planned = argc > 2 ? std::atol(argv[2]) : ranks;
  if (ranks < 2 * kTp * kFsdp / 2 || ranks % (kTp * kFsdp) != 0 || planned < 1) {
    std::fprintf(stderr, "usage: scale_simulation RANKS [PLANNED]; RANKS is a multiple of %ld\n", kTp * kFsdp);
    return 2;
  }
  simulate({kTp, kFsdp, ranks / (kTp * kFsdp)}, planned);
  return 0;
}
