// From the entries of a manifest and the trees to fill, to one read plan, and to the restored trees.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "manifest/rank_view.h"
#include "plan/read_plan.h"
#include "state/flatten.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {

/// Reads any number of subtrees in one go: add() each, read(), then take each result once.
class StateReader {
 public:
  /// `allocate` may be empty: then the views own their memory.
  explicit StateReader(AllocateFn allocate);

  /// Plans to read the subtree at `path` (encoded, without rank), whose entries are `entries` of the view (as
  /// entries_below gives them). Tensors of `target` with the saved dtype and shape will be filled in place;
  /// `report` (may be null) learns what does not match. With `exact`, a tensor of the target that does not match is an
  /// Error(kMismatch) that names all of them. Returns the index of the result. No memory is written yet.
  std::size_t add(const std::string& path, const std::vector<const ViewEntry*>& entries, const Value* target,
                  bool exact, RestoreReport* report);

  /// Reads everything that was added.
  void read(Storage& storage, const IoOptions& io);

  /// The tree of that index.
  Value take_result(std::size_t index);

 private:
  struct PendingTree {
    std::string path;
    std::vector<FlatContainer> containers;
    std::vector<std::pair<std::string, Value>> leaves;
  };
  /// Bytes to be put into a leaf when they have come.
  struct PendingBlob {
    std::size_t blob;  ///< index into blobs_
    std::size_t tree;
    std::size_t leaf;
    std::size_t part;  ///< of an EncodedTensor
  };
  /// What add() has in hand while it plans one tree.
  struct Planning {
    std::size_t tree;
    RestoreReport* report;
    std::vector<std::string> misfits;  ///< descriptions of target tensors that differ from what was saved
  };

  Value plan_leaf(const std::string& path, const Entry& entry, const Value* target, Planning& planning);
  Value plan_tensor(const std::string& path, const Entry& entry, const Value* target, Planning& planning);
  void want_blob(const std::string& path, const std::string& location, std::optional<ByteRange> range, std::size_t part,
                 const Planning& planning);

  AllocateFn allocate_;
  ReadPlanner planner_;
  std::vector<BlobRead> blobs_;
  std::map<std::pair<std::string, std::optional<std::uint64_t>>, std::size_t> blob_index_;  ///< by location and begin
  std::vector<PendingBlob> pending_blobs_;
  std::vector<PendingTree> trees_;
};

/// The entries of `view` grouped by the first component of their paths, in the order of the manifest.
std::unordered_map<std::string_view, std::vector<const ViewEntry*>> entries_by_key(const RankView& view);

/// Dtype and shape of a tensor leaf or tensor-like entry.
struct TensorType {
  DType dtype = DType::kFloat32;
  Dims shape;
  friend bool operator==(const TensorType&, const TensorType&) = default;
};
/// Nothing for other leaves and entries.
std::optional<TensorType> tensor_type(const Value& value);
std::optional<TensorType> tensor_type(const Entry& entry);

}  // namespace torchsnapshot
