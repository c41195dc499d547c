// Take and restore: the engine's façade.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "torchsnapshot/coordinator.h"
#include "torchsnapshot/corruption.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/io_options.h"
#include "torchsnapshot/manifest.h"
#include "torchsnapshot/storage.h"
#include "torchsnapshot/value.h"

namespace torchsnapshot {

/// When async_take copies large contiguous CPU tensors whose views own their memory (an `owner` with a reference count,
/// which is held until the copy is written). Everything else is always copied before it returns. See docs/async.md.
enum class StagingMode : std::uint8_t {
  kEager,  ///< before it returns
  kLazy,   ///< in the background; the memory is write-protected, and a thread that writes to it waits for the copy of a
           ///< few MB. Where the system does not allow that it is kEager, with a notice
  kPromised,  ///< in the background; the caller calls PendingSnapshot::wait_staged or let_wait_staged before the memory
              ///< changes. Tensors on CUDA devices too, of any size and layout
};

/// How the plan of a take of several ranks was made.
struct PlanReport {
  /// Everything but values that are in the manifest is where it was in the last take over this coordinator, on all
  /// ranks: no entries were exchanged.
  bool is_unchanged = false;
  ExchangeFigures figures;
};

struct TakeOptions {
  IoOptions io;
  /// Globs (as Python's fnmatch) over paths "key/sub/path"; entries that match belong to every rank.
  std::vector<std::string> replicated;
  /// A dense tensor above this is stored in chunks along its first dimension.
  std::uint64_t max_chunk_bytes = 512ULL << 20;
  /// A shard above this is stored in pieces.
  std::uint64_t max_shard_bytes = 512ULL << 20;
  /// Tensors below this share objects ("slabs") of about this size.
  std::uint64_t slab_bytes = 128ULL << 20;
  /// False: each tensor gets an object of its own.
  bool batching = true;
  /// Metadata of so many entries or more gets an index, so that few of them are found without reading all.
  std::uint64_t index_entries = 32'768;
  /// Of async_take.
  StagingMode staging = StagingMode::kEager;
  /// Of StagingMode::kLazy: also where the system fails system calls that write to protected memory, such as a read()
  /// into a tensor (EFAULT), instead of making them wait. The engine's own are safe.
  bool lazy_user_faults = false;
  /// Of StagingMode::kPromised: called on a thread of the engine when all copies are made. What it throws (that the
  /// promise was broken, say) ends the take.
  std::function<void()> on_copied;
  /// The ranks that take this snapshot together (docs/distributed.md): each calls take or async_take, alike. An error
  /// or the death of one ends the take on all. Null: this process alone.
  std::shared_ptr<Coordinator> coordinator;
  /// How long a rank that has written everything waits for the others, before it counts them as dead.
  std::chrono::milliseconds commit_timeout = std::chrono::minutes(30);
  /// With more ranks than this, ranks whose entries are of one form send it once, for two more exchanges.
  std::int64_t direct_ranks = 64;
  /// With several ranks: called on the calling thread when the plan is made.
  std::function<void(const PlanReport& report)> on_planned;
  /// Of async_take: called on a thread of the engine when the take has ended, with the error that ended it or null. It
  /// must not throw, nor wait for the take. Without it, a failure that nobody asked for is a notice.
  std::function<void(const std::exception_ptr& error)> on_end;
};

/// Leaves that a restore could not match one to one. Paths are "key/sub/path".
struct RestoreReport {
  std::vector<std::string> missing;     ///< in the target, not in the snapshot
  std::vector<std::string> unexpected;  ///< in the snapshot, not in the target
  std::vector<std::string> mismatched;  ///< another type, dtype or shape: the saved value was delivered
  std::vector<Corruption> corrupt;      ///< damage on storage, with RestoreOptions::keep_going
};

/// Makes memory for a tensor that the target has none for: dense, row-major, on the CPU, writable.
using AllocateFn = std::function<TensorView(DType dtype, const Dims& shape)>;

/// Makes the face's object of an Opaque or EncodedTensor leaf whose bytes have come; it becomes the leaf's `owner`, and
/// the bytes are dropped. `location` is the (first) object they came from. Called on the calling thread.
using DecodeFn =
    std::function<std::shared_ptr<void>(const std::string& path, const std::string& location, const Value& leaf)>;

/// Who reads what all ranks of a restore need.
enum class ReplicatedRead : std::uint8_t {
  kAuto,    ///< kShare where reading is slower than handing round, as far as is known; else kDirect
  kDirect,  ///< each rank reads for itself
  kShare,   ///< one rank reads and verifies, and hands round; the reading is divided over the ranks by bytes
};

struct RestoreOptions {
  IoOptions io;
  /// False: a key of the app state that the snapshot lacks is reported instead of being an error.
  bool strict = true;
  /// True: bytes that fail verification are reported instead of being an error. A tensor that has some then holds what
  /// is on storage; an object keeps the target's value, and is an error if there is none.
  bool keep_going = false;
  /// The ranks that restore together, each what belongs to it; their app states may have different keys. Before any
  /// calls on_state, an error of one is an error on all. Null: this process alone, as rank 0.
  std::shared_ptr<Coordinator> coordinator;
  /// With a coordinator (docs/distributed.md). Ranks share only if none of them asks for kDirect, and the coordinator
  /// can hand bytes round; that kShare is not followed is a notice.
  ReplicatedRead replicated_read = ReplicatedRead::kAuto;
  /// Keys whose tensors must match in dtype and shape; a mismatch is an Error(kTypeMismatch) that
  /// names the paths, before anything is read.
  std::vector<std::string> exact_keys;
  /// Default: memory owned by the view.
  AllocateFn allocate;
  /// Default: the leaves keep their bytes. What it throws ends the restore before any target was written to.
  DecodeFn decode;
  /// Called on the calling thread for each key, in the order of the app state, when its data is complete.
  std::function<void(std::size_t index, Value&& state)> on_state;
};

struct ReadOptions {
  IoOptions io;
  AllocateFn allocate;
  DecodeFn decode;
};

class PendingSnapshot;

/// A handle to a snapshot. Nothing is read until needed. Thread-safe.
class Snapshot {
 public:
  explicit Snapshot(const std::string& url, const StorageOptions& storage_options = {});
  explicit Snapshot(std::shared_ptr<Storage> storage);

  /// Saves `app` and commits. The memory that its tensors view must not change meanwhile.
  /// A snapshot already at that place stays valid until the new one commits, and is then removed.
  static Snapshot take(const std::string& url, const AppState& app, const TakeOptions& options = {},
                       const StorageOptions& storage_options = {});
  static Snapshot take(std::shared_ptr<Storage> storage, const AppState& app, const TakeOptions& options = {});

  /// As take, but returns once the content is fixed: by default every tensor has been copied into buffers under the
  /// memory budget (what exceeds it, written), so that `app` may change at once. The rest goes on on threads of the
  /// engine. Wrong arguments throw here; what fails later comes from the result. The buffers stay for the next call
  /// (release_staging_memory). IoOptions::poll is called in here only; the other observers until the take has ended.
  static PendingSnapshot async_take(const std::string& url, const AppState& app, const TakeOptions& options = {},
                                    const StorageOptions& storage_options = {});
  static PendingSnapshot async_take(std::shared_ptr<Storage> storage, const AppState& app,
                                    const TakeOptions& options = {});

  /// Reads the keys of `app` back. Tensors of `app` with the saved dtype and shape are filled in place; afterwards
  /// each tree is the saved one, with those tensors in it. Sharded entries that the target lacks are left out. Before
  /// the first byte of a target is written, the manifest, the target and the sizes of all objects have
  /// been checked, and everything but plain tensors has been read and decoded.
  RestoreReport restore(AppState& app, const RestoreOptions& options = {}) const;

  /// One entry or subtree, by its path with the rank ("0/model/weight"). Tensors of `target` are filled in place; one
  /// of another dtype or shape than saved is an Error(kMismatch). Throws Error(kEntryNotFound) that names near misses.
  [[nodiscard]] Value read_object(const std::string& path, const Value* target = nullptr,
                                  const ReadOptions& options = {}) const;

  /// The saved tree of one key as rank `rank` sees it.
  [[nodiscard]] Value read_state(const std::string& key, std::int64_t rank, const ReadOptions& options = {}) const;

  /// The metadata; read once. Throws Error(kNotASnapshot) when there is none or it can't be read, and, with `verify`,
  /// when it is not what was written.
  [[nodiscard]] std::shared_ptr<const SnapshotMetadata> metadata(bool verify = true) const;

  [[nodiscard]] const std::shared_ptr<Storage>& storage() const noexcept { return storage_; }

 private:
  friend class PendingSnapshot;
  struct Cache;

  std::shared_ptr<Storage> storage_;
  std::shared_ptr<Cache> cache_;  ///< what was read; shared by copies
};

/// A take that goes on by itself. Copies refer to the same take. When the last one goes, it waits for the take to end;
/// a failure that nobody asked for is then a notice. Takes to one place commit in the order in which they were begun.
/// In a forked child it is of no use: wait() throws. Thread-safe.
class PendingSnapshot {
 public:
  /// Where the snapshot will be.
  [[nodiscard]] const std::string& url() const noexcept;
  /// True when the take has ended, well or not.
  [[nodiscard]] bool done() const;
  /// Blocks until the take has ended, at most for `timeout`. True when it has.
  [[nodiscard]] bool wait_for(std::chrono::milliseconds timeout) const;
  /// Blocks until the take has ended, and returns the snapshot, or throws what ended the take; every time.
  Snapshot wait() const;
  /// Makes the copies that are left at once, on all cores: afterwards all of the app state may change, whatever the
  /// staging. What does not fit the memory budget waits for writes. Errors come from wait().
  void wait_staged() const;
  /// As wait_staged, but for tensors on CUDA devices without waiting for the devices: returns when the copies are
  /// queued, and what is queued on `streams` from now on waits for them. Other streams, and the host, must not change
  /// those tensors before wait_staged() or such a stream has come further.
  void let_wait_staged(std::span<const DeviceStream> streams) const;
  /// Tells the take to stop. It ends soon, with Error(kCancelled) and without a snapshot, unless it was committed
  /// before.
  void cancel() const;

 private:
  friend class Snapshot;
  class Take;
  explicit PendingSnapshot(std::shared_ptr<Take> take) noexcept : take_(std::move(take)) {}
  std::shared_ptr<Take> take_;
};

/// The URL that counts for a take of several ranks: rank 0's. One that differs is a notice. Collective: one exchange.
std::string agree_on_url(Coordinator& ranks, const std::string& url, const NoticeFn& on_notice);

/// For a rank that has failed before it could call take or async_take, while the others do: joins their first exchange
/// with `error`, and so ends the take on all ranks. Throws it, as they do.
[[noreturn]] void refuse_take(Coordinator& ranks, const Error& error);
/// The same for restore.
[[noreturn]] void refuse_restore(Coordinator& ranks, const Error& error);

/// Gives the buffers that takes have left for the next ones back to the system, but for 64 MiB; all of them that are
/// pinned for CUDA.
void release_staging_memory();

}  // namespace torchsnapshot
