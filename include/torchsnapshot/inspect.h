// Looking into snapshots: what is in one, what a tensor holds, is all of it intact, how do two differ.
#pragma once

#include <chrono>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "torchsnapshot/bytes.h"
#include "torchsnapshot/io_options.h"
#include "torchsnapshot/manifest.h"
#include "torchsnapshot/snapshot.h"
#include "torchsnapshot/storage.h"
#include "torchsnapshot/tensor.h"

namespace torchsnapshot {

// --- what is in a snapshot -------------------------------------------------------------------------------------------

/// Sizes of objects by location (as the manifest writes it).
using LocationSizes = std::map<std::string, std::uint64_t, std::less<>>;

/// Sizes of the objects that the manifest refers to; those that are missing, or whose size the storage can't tell, are
/// not in the result.
LocationSizes object_sizes(const SnapshotMetadata& metadata, Storage& storage, const std::stop_token& stop = {});

/// One line of a list.
struct EntryInfo {
  std::string path;            ///< "RANK/key/sub/path", as in the manifest; "RANK" for all of a rank
  std::string type;            ///< as in the manifest ("Tensor", "dict", "int"); "rank" for all of a rank
  bool container = false;      ///< a rank, dict or list
  std::size_t level = 0;       ///< 0 for a rank, 1 for a key, …
  std::optional<DType> dtype;  ///< of a tensor
  Dims shape;                  ///< of a tensor; the whole one, also if ranks share it
  /// On storage, this entry's own; of a container all that lies below it. Tensors that share memory count each.
  std::uint64_t bytes = 0;
  std::size_t leaves = 0;  ///< 1, or what lies below a container
  std::size_t pieces = 0;  ///< stored pieces of a tensor
  bool replicated = false;
  /// A primitive as Python shows it; the type of an object; else empty.
  std::string value;
  std::string serializer;  ///< of a tensor or object
};

struct ListOptions {
  /// Shell patterns over the path with or without the rank ('*' also matches '/'). What lies below a match is listed
  /// too. None: everything.
  std::vector<std::string> patterns;
  std::vector<DType> dtypes;             ///< only tensors of these
  std::optional<std::int64_t> rank;      ///< only this rank's entries
  std::optional<std::size_t> max_level;  ///< nothing below this level; containers still count what they hold
  enum class Order : std::uint8_t { kSaved, kName, kSize } order = Order::kSaved;  ///< of the children of a container
};

/// The entries as a tree, parents before children. Containers that nothing is left of are left out. Pure.
std::vector<EntryInfo> list_entries(const SnapshotMetadata& metadata, const LocationSizes& sizes,
                                    const ListOptions& options = {});

/// Entries and their bytes.
struct Totals {
  std::size_t entries = 0;
  std::uint64_t bytes = 0;
};

struct SnapshotSummary {
  std::string version;  ///< as in the metadata
  std::string writer;   ///< which program took it, as far as can be told
  std::int64_t world_size = 1;
  std::vector<std::string> take_ids;  ///< whose objects it refers to
  std::optional<std::chrono::system_clock::time_point> committed;
  std::uint64_t metadata_bytes = 0;
  bool metadata_guarded = false;  ///< the metadata has a checksum of its own
  Totals leaves;
  std::map<std::string, Totals> by_key;    ///< keys of the app state, decoded
  std::map<std::string, Totals> by_type;   ///< types of leaves
  std::map<std::string, Totals> by_dtype;  ///< of tensors
  std::map<std::int64_t, Totals> by_rank;
  std::size_t objects = 0;  ///< that are referred to
  std::uint64_t object_bytes = 0;
  std::size_t objects_missing = 0;
  std::size_t objects_with_checksums = 0;
  std::uint64_t bytes_with_checksums = 0;
  std::vector<std::string> problems;  ///< checksum files that can't be read
};

/// Reads metadata, sizes and checksum files; no data.
SnapshotSummary summarize(const Snapshot& snapshot, const std::stop_token& stop = {});

// --- one entry -------------------------------------------------------------------------------------------------------

/// The path in the manifest that a user means: as it is, or without a rank that of the lowest rank that has it. Throws
/// Error(kEntryNotFound) that names near misses.
std::string resolve_entry(const SnapshotMetadata& metadata, const std::string& path);

/// An element of a tensor, or what was computed from some. Integers are exact.
using Number = std::variant<std::int64_t, std::uint64_t, double, std::complex<double>>;

struct TensorSummary {
  DType dtype = DType::kFloat32;
  Dims shape;
  std::uint64_t elements = 0;
  std::uint64_t bytes = 0;
  // Of the elements that are numbers: neither NaN nor infinite. None for complex ones (minimum, maximum), for bits and
  // quantized ones, and where there is no such element.
  std::optional<Number> minimum;
  std::optional<Number> maximum;
  std::optional<Number> mean;
  std::uint64_t nans = 0;
  std::uint64_t infinities = 0;
  std::uint64_t zeros = 0;
  std::vector<Number> first;  ///< the first elements in row-major order
};

/// Takes bytes, in order. Called on the calling thread.
using ByteSink = std::function<void(std::span<const std::byte>)>;

/// Reads a tensor once, in bounded memory; a sharded one as a whole. `path` as for resolve_entry. Throws
/// Error(kInvalidArgument) when it is no tensor, Error(kUnsupported) for one that isn't stored as plain elements.
TensorSummary summarize_tensor(const Snapshot& snapshot, const std::string& path, std::size_t first = 8,
                               const IoOptions& io = {});
/// The elements, row-major and little-endian. As summarize_tensor.
void read_tensor(const Snapshot& snapshot, const std::string& path, const ByteSink& sink, const IoOptions& io = {});
/// The tensor as a file of numpy (.npy). What numpy has no type for is widened without loss: bfloat16 and the float8
/// types become float32, complex32 becomes complex64. Returns the dtype written, by numpy's name. As summarize_tensor.
std::string write_npy(const Snapshot& snapshot, const std::string& path, const ByteSink& sink,
                      const IoOptions& io = {});
/// The stored bytes of an object, or of a tensor that isn't stored as plain elements (in one piece).
void read_serialized(const Snapshot& snapshot, const std::string& path, const ByteSink& sink, const IoOptions& io = {});

// --- is all of it intact ---------------------------------------------------------------------------------------------

enum class FindingKind : std::uint8_t {
  kMetadata,       ///< the metadata is damaged
  kStructure,      ///< entries that contradict each other
  kMissingObject,  ///< an object is not there
  kWrongSize,      ///< an object has another size than it had, or than entries need
  kWrongBytes,     ///< a block has another checksum than it had
  kUnreadable,     ///< the storage failed to read an object
  kChecksums,      ///< a checksum file is missing, damaged or contradicts the manifest
};
/// "WRONG_BYTES"
std::string_view to_string(FindingKind kind) noexcept;

/// Something that is wrong.
struct Finding {
  FindingKind kind = FindingKind::kMetadata;
  std::vector<std::string> entries;  ///< that it harms: paths of the manifest; none for gaps between entries
  std::string object;                ///< location; empty when no object is concerned
  std::optional<ByteRange> range;    ///< in the object
  std::string expected;              ///< bytes, or a CRC-32C
  std::string found;
  std::string message;  ///< all of it in a sentence
};

struct VerifyOptions {
  IoOptions io;
  /// Only structure, presence and sizes; no data is read.
  bool quick = false;
};

struct VerifyReport {
  std::vector<Finding> findings;  ///< by object and offset
  std::size_t entries = 0;
  std::size_t objects = 0;
  std::uint64_t object_bytes = 0;  ///< of the objects that are there
  std::uint64_t bytes_read = 0;
  std::uint64_t bytes_verified = 0;  ///< compared with a checksum and right
  bool metadata_guarded = false;
  std::vector<std::string> unchecked;  ///< objects that have no checksums: they were read, and that is all
};

/// Checks a snapshot. What is wrong is in the report; thrown is only what keeps it from being looked at:
/// Error(kNotASnapshot) without metadata, Error(kUnsupported) for metadata that this version can't read, and failures
/// of the storage that concern no single object.
VerifyReport verify(Storage& storage, const VerifyOptions& options = {});

// --- how do two differ -----------------------------------------------------------------------------------------------

enum class DifferenceKind : std::uint8_t { kOnlyInA, kOnlyInB, kType, kDType, kShape, kKeys, kValue };
/// "ONLY_IN_A"
std::string_view to_string(DifferenceKind kind) noexcept;

struct Difference {
  std::string path;  ///< in the manifest; of a tensor that ranks share, its first
  DifferenceKind kind = DifferenceKind::kValue;
  std::string a;  ///< what A has, for people
  std::string b;
  // kValue of tensors with plain elements:
  std::uint64_t elements = 0;
  std::uint64_t differing = 0;
  std::optional<std::uint64_t> first_differing;  ///< index in row-major order
  double max_absolute = 0;                       ///< over the pairs that are both finite
  double max_relative = 0;                       ///< |a - b| / |b|, where b is not 0
};

struct DiffOptions {
  IoOptions io;
  /// Floating-point and complex numbers are equal when |a - b| <= atol + rtol * |b|, when both are NaN, and when both
  /// are the same infinity. None: bytes are compared. Other types are always compared by bytes.
  struct Tolerance {
    double rtol = 0;
    double atol = 0;
  };
  std::optional<Tolerance> tolerance;
  /// As ListOptions::patterns.
  std::vector<std::string> patterns;
};

struct DiffReport {
  std::vector<Difference> differences;  ///< in the order of A; then what only B has
  std::size_t entries = 0;              ///< compared: in both, and leaves
  std::uint64_t bytes = 0;              ///< of each side that were compared
};

/// Compares entry by entry, in bounded memory. How a tensor is cut into pieces, and on which ranks they are, makes no
/// difference. Objects are compared by their bytes.
DiffReport diff(const Snapshot& a, const Snapshot& b, const DiffOptions& options = {});

}  // namespace torchsnapshot
