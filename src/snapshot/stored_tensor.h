// Tensors as the manifest stores them, read box by box in bounded memory: what the tools that look into snapshots
// share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "integrity/block_checksums.h"
#include "pipeline/checksum_store.h"
#include "pipeline/corruption_log.h"
#include "pipeline/progress.h"
#include "pipeline/read_pipeline.h"
#include "plan/read_plan.h"
#include "torchsnapshot/io_options.h"
#include "torchsnapshot/manifest.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// A tensor with all its pieces, those of other ranks included.
struct StoredTensor {
  std::string path;
  DType dtype = DType::kFloat32;
  Dims shape;
  std::vector<ShardEntry> pieces;

  /// Not stored as plain elements.
  [[nodiscard]] bool is_encoded() const noexcept;
  [[nodiscard]] std::uint64_t nbytes() const { return dense_bytes(dtype, shape); }
};

/// Makes StoredTensors of entries. The metadata outlives it.
class TensorIndex {
 public:
  explicit TensorIndex(const SnapshotMetadata& metadata);
  /// Nothing when the entry is no tensor. Of shards with the same box, one is kept. Throws Error(kCorrupt) for a
  /// sharded tensor without any shard.
  [[nodiscard]] std::optional<StoredTensor> find(const std::string& path, const Entry& entry) const;
  /// The paths of a sharded tensor on all ranks, in the order of the manifest; none for another path.
  [[nodiscard]] const std::vector<const Manifest::Item*>& shards_of(std::string_view logical_path) const;

 private:
  std::unordered_map<std::string_view, std::vector<const Manifest::Item*>> sharded_;  // by path without rank
};

/// Cuts a dense tensor into boxes that are each an unbroken run of at most `max_bytes` (at least one element), in
/// row-major order. Lazy, because a shape costs nothing to claim.
class SlabCursor {
 public:
  SlabCursor(DType dtype, Dims shape, std::uint64_t max_bytes);
  /// The next box, or nothing.
  std::optional<Box> next();

 private:
  Dims shape_;
  std::size_t split_ = 0;  // the dimension that is cut; those before it go one by one
  std::int64_t rows_ = 1;  // of it, in a box
  Dims at_;                // offsets of the next box
  bool whole_ = false;     // one box is enough
  bool done_ = false;
};

/// Reads any number of boxes of stored tensors at once into dense memory, verified as IoOptions::checksums says.
class BoxReads {
 public:
  BoxReads(Storage& storage, const IoOptions& io, ProgressMeter& meter) : storage_(storage), io_(io), meter_(meter) {}

  /// Looks at the tensor's objects, as a restore does: call it before the first add. Throws Error(kCorrupt, kNotFound)
  /// that names entry and object.
  void check(const StoredTensor& tensor);
  /// Will fill `memory`, of the size of the box.
  void add(const StoredTensor& tensor, const Box& box, std::byte* memory);
  /// Reads what was added since the last run. Throws Error(kCorrupt) for bytes that are not what was written.
  void run();

 private:
  Storage& storage_;
  const IoOptions& io_;
  ProgressMeter& meter_;
  ChecksumStore checksums_;
  CorruptionLog corruptions_{false};
  ObjectSizes sizes_;
  ReadPlanner planner_;
};

/// Reads an object, or a range of it, front to back and verified as IoOptions::checksums says.
class ObjectStream {
 public:
  /// `path`: the entry, for messages. Throws Error(kNotFound) that names it when the object is not there.
  ObjectStream(std::string path, std::string location, std::optional<ByteRange> range, Storage& storage,
               const IoOptions& io);

  /// Bytes in all.
  [[nodiscard]] std::uint64_t size() const noexcept { return range_.size(); }
  /// The next bytes, some megabytes at most; none at the end. Valid until the next call. Throws Error(kCorrupt).
  std::span<const std::byte> next();

 private:
  const std::string path_;
  const std::string location_;
  Storage& storage_;
  const IoOptions& io_;
  ChecksumStore checksums_;
  std::unique_ptr<ChecksumVerifier> verifier_;
  std::unique_ptr<ObjectReader> reader_;
  ByteRange range_;  // that is wanted
  ByteRange reads_;  // that is read: with the rest of the checksum blocks that it touches
  std::uint64_t at_ = 0;
  std::string whole_;  // of a storage that can't tell sizes
  std::vector<std::byte> memory_;
};

/// Hands over the elements of a tensor in row-major order, some megabytes at a time.
void stream_tensor(const StoredTensor& tensor, Storage& storage, const IoOptions& io,
                   const std::function<void(std::span<const std::byte>)>& sink);

/// "torch.float32 [2, 3]"
std::string tensor_text(DType dtype, const Dims& shape);
/// A primitive as Python shows it.
std::string primitive_text(const PrimitiveEntry& entry);

/// Whether a pattern of a list of them matches the path, with or without its rank, or a path above it. Pure.
class PathFilter {
 public:
  explicit PathFilter(const std::vector<std::string>& patterns);
  ~PathFilter();
  PathFilter(const PathFilter&) = delete;
  PathFilter& operator=(const PathFilter&) = delete;
  [[nodiscard]] bool matches(std::string_view path) const;

 private:
  struct Patterns;
  std::unique_ptr<Patterns> patterns_;
};

}  // namespace torchsnapshot
