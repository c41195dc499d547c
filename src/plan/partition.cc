#include "plan/partition.h"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>

namespace torchsnapshot {
namespace {

bool can_be_cut(const SharedBulk& bulk) {
  return bulk.rows > 1 && bulk.bytes >= kMinCutBytes;
}

/// Gives out the bulks that can be cut: the writers one after the other, each until it has its share.
class Filler {
 public:
  Filler(std::vector<std::uint64_t>& loads, std::uint64_t share) : loads_(loads), share_(share) {}

  std::vector<Portion> divide(const SharedBulk& bulk) {
    std::vector<Portion> portions;
    const std::uint64_t row_bytes = std::max<std::uint64_t>(bulk.bytes / static_cast<std::uint64_t>(bulk.rows), 1);
    const auto least = static_cast<std::int64_t>(std::max<std::uint64_t>(kMinCutBytes / 4 / row_bytes, 1));
    for (std::int64_t row = 0; row < bulk.rows;) {
      const std::int64_t left = bulk.rows - row;
      const std::int64_t room = next_room(row_bytes, least);
      // What would be left over for the next one must not be too little.
      const std::int64_t rows = left - room < least ? left : room;
      portions.push_back({static_cast<std::int64_t>(writer_), row, row + rows});
      loads_[writer_] += row_bytes * static_cast<std::uint64_t>(rows);
      row += rows;
    }
    return portions;
  }

 private:
  /// Rows that the writer in turn should take at once; goes on to the next one when it has (nearly) its share.
  std::int64_t next_room(std::uint64_t row_bytes, std::int64_t least) {
    while (writer_ + 1 < loads_.size()) {
      const std::uint64_t free = share_ > loads_[writer_] ? share_ - loads_[writer_] : 0;
      const auto rows = static_cast<std::int64_t>((free + row_bytes / 2) / row_bytes);
      if (rows >= least) return rows;
      // What this one has not been given is for all that come, not for the last.
      share_ += free / (loads_.size() - ++writer_);
    }
    return INT64_MAX / 2;  // the last writer takes what is left
  }

  std::vector<std::uint64_t>& loads_;
  std::uint64_t share_;
  std::size_t writer_ = 0;
};

}  // namespace

std::vector<std::vector<Portion>> partition(std::span<const SharedBulk> bulks, std::int64_t writers) {
  std::vector<std::vector<Portion>> portions(bulks.size());
  if (bulks.empty()) return portions;  // most often so, and there may be very many writers
  std::vector<std::uint64_t> loads(static_cast<std::size_t>(writers));
  std::uint64_t total = 0;
  std::vector<std::size_t> whole;
  for (std::size_t i = 0; i < bulks.size(); ++i) {
    total += bulks[i].bytes;
    if (!can_be_cut(bulks[i])) whole.push_back(i);
  }
  std::stable_sort(whole.begin(), whole.end(),
                   [&bulks](std::size_t a, std::size_t b) { return bulks[a].bytes > bulks[b].bytes; });
  using Load = std::pair<std::uint64_t, std::int64_t>;
  std::priority_queue<Load, std::vector<Load>, std::greater<>> least;
  for (std::int64_t writer = 0; writer < writers; ++writer) least.emplace(0, writer);
  for (const std::size_t i : whole) {
    auto [load, writer] = least.top();
    least.pop();
    portions[i] = {{writer, 0, std::max<std::int64_t>(bulks[i].rows, 1)}};
    load += bulks[i].bytes;
    loads[static_cast<std::size_t>(writer)] = load;
    least.emplace(load, writer);
  }
  // The share of the cut ones goes to the writers below the mean; what some have above it, the others have less.
  std::uint64_t share = (total + static_cast<std::uint64_t>(writers) - 1) / static_cast<std::uint64_t>(writers);
  std::vector<std::uint64_t> sorted = loads;
  std::sort(sorted.begin(), sorted.end());
  std::uint64_t below = total - std::accumulate(sorted.begin(), sorted.end(), std::uint64_t{0});
  for (std::size_t count = 0; count < sorted.size(); ++count) {  // water level over the `count` + 1 lowest
    below += sorted[count];
    share = below / (count + 1) + 1;
    if (count + 1 == sorted.size() || sorted[count + 1] >= share) break;
  }
  Filler filler(loads, share);
  for (std::size_t i = 0; i < bulks.size(); ++i) {
    if (can_be_cut(bulks[i])) portions[i] = filler.divide(bulks[i]);
  }
  return portions;
}

}  // namespace torchsnapshot
