#include "plan/layout.h"

#include <algorithm>

#include "plan/write_plan.h"

namespace torchsnapshot {
namespace {

constexpr std::uint64_t kItemAlignment = 64;
constexpr std::uint64_t kPage = 4096;

/// The first offset from `end` on that suits the item.
std::uint64_t offset_from(std::uint64_t end, const LayoutItem& item) {
  if (item.address && item.size >= kCongruentBytes) return end + (*item.address - end) % kPage;
  return (end + kItemAlignment - 1) / kItemAlignment * kItemAlignment;
}

}  // namespace

std::vector<Placement> lay_out(std::span<const LayoutItem> items, std::uint64_t slab_bytes, bool batching) {
  slab_bytes = std::min(slab_bytes, std::uint64_t{1} << 62);  // so that offsets can't overflow
  std::vector<Placement> placements;
  placements.reserve(items.size());
  std::size_t objects = 0;
  std::optional<std::size_t> slab;
  std::uint64_t slab_end = 0;
  for (const LayoutItem& item : items) {
    if (item.whole_object) {
      placements.push_back({objects++, 0});
      continue;
    }
    if (!batching || item.size >= slab_bytes) {
      placements.push_back({objects++, offset_from(0, item)});
      continue;
    }
    std::uint64_t offset = offset_from(slab_end, item);
    if (!slab || offset + item.size > slab_bytes) {
      slab = objects++;
      offset = offset_from(0, item);
    }
    placements.push_back({*slab, offset});
    slab_end = offset + item.size;
  }
  return placements;
}

}  // namespace torchsnapshot
