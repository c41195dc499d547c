// Which object an item goes to, and where in it. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace torchsnapshot {

/// Bytes that need a place. `size` is not 0.
struct LayoutItem {
  std::uint64_t size = 0;
  /// Address of the bytes if they can be written from where they lie.
  std::optional<std::uint64_t> address;
  /// Gets an object of its own, and begins where it begins.
  bool whole_object = false;
};

struct Placement {
  std::size_t object = 0;
  std::uint64_t offset = 0;
};

/// A place for each item, in order; objects are counted from 0 in order of their first item. See plan_write for the
/// rules.
std::vector<Placement> lay_out(std::span<const LayoutItem> items, std::uint64_t slab_bytes, bool batching);

}  // namespace torchsnapshot
