// From the entries of a manifest and the trees to fill, to one read plan, and to the restored trees.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "manifest/rank_view.h"
#include "pipeline/checksum_store.h"
#include "pipeline/corruption_log.h"
#include "pipeline/read_pipeline.h"
#include "plan/read_plan.h"
#include "state/flatten.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {

class ShareSession;

/// Reads any number of subtrees in one go: add() each, read(), then take each result once. Entries and targets that
/// were added outlive the reader.
class StateReader {
 public:
  /// Either function may be empty: then new tensors own their memory, and encoded leaves keep their bytes.
  StateReader(AllocateFn allocate, DecodeFn decode);

  /// Plans to read the subtree at `path` (encoded, without rank), whose entries are `entries` of a view. Tensors of
  /// `target` with the saved dtype and shape will be filled in place; `report` (may be null) learns what does not
  /// match. With `exact`, a tensor of the target that can't be filled is an Error(kMismatch) that names all of them.
  /// Returns the index of the result. Reads nothing, and makes no memory.
  std::size_t add(const std::string& path, const std::vector<const ViewEntry*>& entries, const Value* target,
                  bool exact, RestoreReport* report);

  /// Reads everything that was added: checks the objects, reads and decodes what is not plain elements, makes memory,
  /// and only then writes to targets. What is read is verified by `checksums`, unless `io` says otherwise; what is
  /// corrupt goes to `corruptions`.
  void read(Storage& storage, const IoOptions& io, ChecksumStore& checksums, CorruptionLog& corruptions) {
    check(storage, io, checksums);
    read_checked(storage, io, corruptions, nullptr);
  }
  /// The two halves of read(): first the look at all objects; then the reading. `session` (may be null): reads once for
  /// all ranks what they all want, if they share; collective then.
  void check(Storage& storage, const IoOptions& io, ChecksumStore& checksums);
  void read_checked(Storage& storage, const IoOptions& io, CorruptionLog& corruptions, ShareSession* session);

  /// The tree of that index.
  Value take_result(std::size_t index);

 private:
  struct Leaf {
    const ViewEntry* item;
    const Value* target;   ///< to be filled; null: a new value is made
    Value value;           ///< the result, when read() is through
    bool is_kept = false;  ///< the target's value stays: what is on storage is corrupt
  };
  struct Tree {
    Inflater inflater;
    std::vector<Leaf> leaves;
  };
  /// Bytes that belong into a leaf.
  struct PendingBlob {
    std::size_t blob;  ///< index into blobs_
    std::size_t tree;
    std::size_t leaf;
    std::size_t part;  ///< of an EncodedTensor
  };

  void require(Leaf& leaf, std::size_t tree, std::size_t index);
  void want_blob(const Leaf& leaf, const std::string& location, std::optional<ByteRange> range, PendingBlob pending);
  std::vector<std::optional<SharedBytes>> read_blobs(const ReadContext& context, ShareSession* session);
  void place_blobs(const std::vector<std::optional<SharedBytes>>& bytes);
  static void keep_target(Leaf& leaf);
  void plan_tensors();

  AllocateFn allocate_;
  DecodeFn decode_;
  ReadPlanner planner_;
  std::vector<BlobRead> blobs_;
  std::map<std::pair<std::string, std::uint64_t>, std::size_t> blob_index_;  ///< by location and begin
  std::vector<PendingBlob> pending_blobs_;
  std::vector<Tree> trees_;
  // Of check().
  const ChecksumStore* verify_by_ = nullptr;
  ObjectSizes sizes_;
};

/// Dtype and shape of a tensor leaf or tensor-like entry.
struct TensorType {
  DType dtype = DType::kFloat32;
  Dims shape;
  friend bool operator==(const TensorType&, const TensorType&) = default;
};
/// Nothing for other leaves and entries.
std::optional<TensorType> tensor_type(const Value& value);
std::optional<TensorType> tensor_type(const Entry& entry);

/// True when no two elements share memory, as far as the strides alone tell (some exotic layouts count as shared).
bool has_distinct_elements(const TensorView& view);

}  // namespace torchsnapshot
