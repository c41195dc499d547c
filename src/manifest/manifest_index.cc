#include "manifest/manifest_index.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/little_endian.h"
#include "integrity/crc32c.h"
#include "manifest/compact_part.h"
#include "manifest/rank_view.h"
#include "manifest/validate.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::string_view kMagic = "TSMINDEX";
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kHeaderBytes = 64;
constexpr std::size_t kRowBytes = 24;
/// Far above any block and table that are written.
constexpr std::uint64_t kMaxBlockBytes = 256 << 20;
constexpr std::uint64_t kMaxTableBytes = 4ULL << 30;

[[noreturn]] void malformed(const std::string& why) {
  throw Error(ErrorCode::kCorrupt, "the index of the metadata is malformed: " + why);
}

std::string_view logical(const Manifest::Item& item) {
  return split_rank(item.first).second;
}

}  // namespace

std::string write_index(const SnapshotMetadata& metadata, std::string_view take_id, const MetadataIdentity& identity) {
  struct Place {
    std::string_view path;
    std::int64_t rank;
    const Manifest::Item* item;
  };
  std::vector<Place> keys;
  keys.reserve(metadata.manifest.size());
  for (const Manifest::Item& item : metadata.manifest) {
    const auto [rank, path] = split_rank(item.first);
    keys.push_back({path, rank, &item});
  }
  std::sort(keys.begin(), keys.end(),
            [](const Place& a, const Place& b) { return a.path != b.path ? a.path < b.path : a.rank < b.rank; });

  std::string blocks;
  std::string rows;
  std::string paths;
  std::vector<const Manifest::Item*> items;
  for (std::size_t begin = 0; begin < keys.size(); begin += kIndexBlockEntries) {
    const std::size_t end = std::min(begin + kIndexBlockEntries, keys.size());
    items.clear();
    for (std::size_t i = begin; i < end; ++i) items.push_back(keys[i].item);
    const std::string block = serialize(encode_entries(items, take_id));
    if (block.size() > kMaxBlockBytes) {
      throw Error(ErrorCode::kUnsupported, "the entries of the manifest are too large for an index");
    }
    put_little_endian(rows, std::uint64_t{kHeaderBytes + blocks.size()});
    put_little_endian(rows, static_cast<std::uint32_t>(block.size()));
    put_little_endian(rows, crc32c(0, block));
    put_little_endian(rows, static_cast<std::uint32_t>(paths.size()));
    put_little_endian(rows, static_cast<std::uint32_t>(keys[begin].path.size()));
    paths += keys[begin].path;
    blocks += block;
  }
  const std::string table = rows + paths;

  std::string out(kMagic);
  put_little_endian(out, kVersion);
  put_little_endian(out, identity.crc);
  put_little_endian(out, identity.bytes);
  put_little_endian(out, static_cast<std::uint64_t>(metadata.world_size));
  put_little_endian(out, std::uint64_t{keys.size()});
  put_little_endian(out, std::uint64_t{kHeaderBytes + blocks.size()});
  put_little_endian(out, std::uint64_t{rows.size() / kRowBytes});
  put_little_endian(out, crc32c(0, table));
  put_little_endian(out, crc32c(0, out));
  return out.append(blocks).append(table);
}

ManifestIndex::ManifestIndex(ReadFn read, std::uint64_t size, std::string take_id)
    : read_(std::move(read)), take_id_(std::move(take_id)) {
  if (size < kHeaderBytes) malformed("it ends inside its header");
  const std::string header = read_(0, kHeaderBytes);
  if (std::string_view(header).substr(0, kMagic.size()) != kMagic) malformed("it does not begin as one");
  if (crc32c(0, std::string_view(header).substr(0, kHeaderBytes - 4)) !=
      get_little_endian<std::uint32_t>(header, kHeaderBytes - 4)) {
    malformed("the checksum of its header is wrong");
  }
  if (get_little_endian<std::uint32_t>(header, 8) != kVersion) {
    throw Error(ErrorCode::kUnsupported, "the index of the metadata is of a later version of torchsnapshot");
  }
  identity_ = {get_little_endian<std::uint64_t>(header, 16), get_little_endian<std::uint32_t>(header, 12)};
  const auto world_size = get_little_endian<std::uint64_t>(header, 24);
  if (world_size == 0 || world_size > static_cast<std::uint64_t>(kMaxWorldSize)) malformed("its world size is absurd");
  world_size_ = static_cast<std::int64_t>(world_size);
  entries_ = get_little_endian<std::uint64_t>(header, 32);
  table_begin_ = get_little_endian<std::uint64_t>(header, 40);
  const auto blocks = get_little_endian<std::uint64_t>(header, 48);
  if (table_begin_ < kHeaderBytes || table_begin_ > size || size - table_begin_ > kMaxTableBytes ||
      blocks > (size - table_begin_) / kRowBytes) {
    malformed("its table is not where it should be");
  }
  blocks_ = static_cast<std::size_t>(blocks);
  table_ = read_(table_begin_, size - table_begin_);
  if (crc32c(0, table_) != get_little_endian<std::uint32_t>(header, 56))
    malformed("the checksum of its table is wrong");
}

ManifestIndex::Row ManifestIndex::row(std::size_t block) const {
  const std::size_t at = block * kRowBytes;
  const std::string_view paths = std::string_view(table_).substr(blocks_ * kRowBytes);
  const auto path_begin = get_little_endian<std::uint32_t>(table_, at + 16);
  const auto path_size = get_little_endian<std::uint32_t>(table_, at + 20);
  Row row{get_little_endian<std::uint64_t>(table_, at),
          get_little_endian<std::uint32_t>(table_, at + 8),
          get_little_endian<std::uint32_t>(table_, at + 12),
          {}};
  if (path_begin > paths.size() || path_size > paths.size() - path_begin || row.offset < kHeaderBytes ||
      row.offset > table_begin_ || row.size > table_begin_ - row.offset || row.size > kMaxBlockBytes) {
    malformed("a row of its table points outside");
  }
  row.first = paths.substr(path_begin, path_size);
  return row;
}

const Manifest& ManifestIndex::read_block(std::size_t block) const {
  if (last_block_ == block) return last_entries_;
  last_block_.reset();
  const Row where = row(block);
  const std::string bytes = read_(where.offset, where.size);
  if (crc32c(0, bytes) != where.crc) malformed("the checksum of a block is wrong");
  last_entries_ = {};
  decode_entries(parse_part(bytes), take_id_, last_entries_);
  last_block_ = block;
  return last_entries_;
}

std::size_t ManifestIndex::first_block_from(std::string_view path) const {
  std::size_t low = 0;
  for (std::size_t high = blocks_; low < high;) {
    const std::size_t middle = low + (high - low) / 2;
    if (row(middle).first < path) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

std::uint64_t ManifestIndex::estimate(std::string_view path) const {
  const std::string behind = std::string(path) + static_cast<char>('/' + 1);
  return (first_block_from(behind) - first_block_from(path) + 1) * kIndexBlockEntries;
}

void ManifestIndex::select_range(std::string_view from, std::string_view to, Manifest& out) const {
  const std::size_t low = first_block_from(from);  // what is wanted may begin in the block before
  const auto is_behind = [&](std::string_view path) { return to.empty() ? path > from : path >= to; };
  for (std::size_t block = low == 0 ? 0 : low - 1; block < blocks_ && !is_behind(row(block).first); ++block) {
    for (const Manifest::Item& item : read_block(block)) {
      const std::string_view path = logical(item);
      if (path < from || is_behind(path)) continue;
      if (Entry* const entry = out.try_emplace(item.first)) *entry = item.second;
    }
  }
}

void ManifestIndex::check(const Manifest& manifest) const {
  std::uint64_t count = 0;
  for (std::size_t block = 0; block < blocks_; ++block) {
    for (const Manifest::Item& item : read_block(block)) {
      const Entry* const entry = manifest.find(item.first);
      if (entry == nullptr || *entry != item.second)
        malformed("of '" + item.first + "' it says what the metadata does not");
      ++count;
    }
  }
  if (count != entries_ || count != manifest.size()) malformed("it has not the entries that the metadata has");
}

void ManifestIndex::select(std::string_view path, bool subtree, Manifest& out) const {
  select_range(path, {}, out);
  if (!subtree) return;
  const std::string below = std::string(path) + "/";
  const std::string behind = std::string(path) + static_cast<char>('/' + 1);
  select_range(below, behind, out);
}

}  // namespace torchsnapshot
