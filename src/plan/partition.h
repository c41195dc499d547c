// Who writes what of the state that several ranks have alike. Pure: every rank computes the same.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace torchsnapshot {

/// Something that any of the ranks could write.
struct SharedBulk {
  std::uint64_t bytes = 0;
  /// Rows of equal size at whose borders it may be cut; 1 (or 0): it can't be cut.
  std::int64_t rows = 1;
};

/// Rows [begin, end) of a bulk, to be written by `writer` (counted from 0).
struct Portion {
  std::int64_t writer = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  friend bool operator==(const Portion&, const Portion&) = default;
};

/// Bulks below this are never cut, so that a snapshot does not get more pieces than it is worth.
inline constexpr std::uint64_t kMinCutBytes = 4ULL << 20;

/// Divides the bulks over `writers` so that each has about the same number of bytes: what can't be cut goes, the
/// largest first, to the writer that has least; the others fill the writers up in order, and are cut where one is full
/// (by whole rows, no portion below about kMinCutBytes / 4). Returns for each bulk its portions, in order of rows; they
/// tile it. O((bulks + writers) log writers).
std::vector<std::vector<Portion>> partition(std::span<const SharedBulk> bulks, std::int64_t writers);

}  // namespace torchsnapshot
