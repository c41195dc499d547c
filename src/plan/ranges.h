// Ranges of bytes that are read together. Pure.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "torchsnapshot/bytes.h"

namespace torchsnapshot {

/// Gaps between reads up to this size are read along rather than sought over.
inline constexpr std::uint64_t kMaxGapBytes = 64ULL << 10;

/// `range` extended to multiples of `step` (not 0), but not past the end of its object.
inline ByteRange widened(ByteRange range, std::uint64_t step, std::uint64_t object_bytes) noexcept {
  return {range.begin / step * step, std::min((range.end + step - 1) / step * step, object_bytes)};
}

/// Appends a range that does not begin before the last one, or extends the last one, if at most `max_gap` lies between.
inline void append_joined(std::vector<ByteRange>& ranges, ByteRange next, std::uint64_t max_gap) {
  if (!ranges.empty() && next.begin <= ranges.back().end + max_gap) {
    ranges.back().end = std::max(ranges.back().end, next.end);
  } else {
    ranges.push_back(next);
  }
}

}  // namespace torchsnapshot
