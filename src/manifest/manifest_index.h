// A sidecar of the metadata that finds one entry of millions without reading the others: sorted blocks of entries, and
// a table of the first path of each. docs/format.md describes the bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "torchsnapshot/manifest.h"

namespace torchsnapshot {

/// Of which metadata an index is: they are read together, or not at all.
struct MetadataIdentity {
  std::uint64_t bytes = 0;
  std::uint32_t crc = 0;  ///< MetadataSeal::crc
  friend bool operator==(const MetadataIdentity&, const MetadataIdentity&) = default;
};

/// Entries in a block.
inline constexpr std::size_t kIndexBlockEntries = 256;

/// The index of `metadata`, which `take_id` has written. Pure.
std::string write_index(const SnapshotMetadata& metadata, std::string_view take_id, const MetadataIdentity& identity);

/// Looks entries up. Everything is checked before it is used: a part that was damaged is an Error(kCorrupt) that says
/// so. Not thread-safe.
class ManifestIndex {
 public:
  /// Bytes [offset, offset + size) of the index.
  using ReadFn = std::function<std::string(std::uint64_t offset, std::uint64_t size)>;

  /// Reads the table. `size`: of the index. Throws Error(kUnsupported) for a later version.
  ManifestIndex(ReadFn read, std::uint64_t size, std::string take_id);

  [[nodiscard]] const MetadataIdentity& identity() const noexcept { return identity_; }
  [[nodiscard]] std::int64_t world_size() const noexcept { return world_size_; }
  [[nodiscard]] std::uint64_t entries() const noexcept { return entries_; }

  /// Appends the entries of all ranks at `path` (without rank) to `out`; with `subtree`, those below it too. One that
  /// is there already is left out.
  void select(std::string_view path, bool subtree, Manifest& out) const;
  /// About how many entries select() with `subtree` would look at. Reads nothing.
  [[nodiscard]] std::uint64_t estimate(std::string_view path) const;
  /// Reads all of it, and throws Error(kCorrupt) unless it says what `manifest` says.
  void check(const Manifest& manifest) const;

 private:
  /// A block, as its row of the table tells.
  struct Row {
    std::uint64_t offset = 0;
    std::uint32_t size = 0;
    std::uint32_t crc = 0;
    std::string_view first;  ///< path without rank
  };

  [[nodiscard]] Row row(std::size_t block) const;
  /// Valid until the next call: the last one is kept, as a look-up asks for it more than once, and often the next one
  /// does.
  [[nodiscard]] const Manifest& read_block(std::size_t block) const;
  /// The first block whose first path is not below `path`; the number of blocks when there is none.
  [[nodiscard]] std::size_t first_block_from(std::string_view path) const;
  /// Appends what lies in [from, to): all paths, if `to` is empty only `from` itself.
  void select_range(std::string_view from, std::string_view to, Manifest& out) const;

  ReadFn read_;
  std::string take_id_;
  MetadataIdentity identity_;
  std::int64_t world_size_ = 1;
  std::uint64_t entries_ = 0;
  std::uint64_t table_begin_ = 0;
  std::size_t blocks_ = 0;
  std::string table_;
  mutable std::optional<std::size_t> last_block_;  ///< whose entries last_entries_ are
  mutable Manifest last_entries_;
};

}  // namespace torchsnapshot
