// Snapshots of libtorch programs: modules, optimizers, schedulers, random number generators and values of your own,
// in the form in which the Python package saves them, so that either language restores what the other has taken.
// Link torchsnapshot::torch. docs/cpp.md is the guide. It is the one public header that includes torch.
#pragma once

#include <ATen/core/ivalue.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/optim/optimizer.h>
#include <torch/optim/schedulers/lr_scheduler.h>
#include <torch/optim/schedulers/reduce_on_plateau_scheduler.h>

#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "torchsnapshot/snapshot.h"

namespace c10d {
class Store;
}

namespace torchsnapshot::libtorch {

/// Values by name, in order, as Python's state_dict(): numbers, bools, text, tensors, None (an empty IValue), lists,
/// tuples, dicts, other StateDicts, and whatever else a c10::IValue can hold. Copies share the tensors. Not thread-safe
/// while being changed.
class StateDict {
 public:
  using Item = std::pair<std::string, c10::IValue>;

  StateDict();
  StateDict(std::initializer_list<Item> items);
  StateDict(const StateDict& other);
  StateDict(StateDict&& other) noexcept;
  StateDict& operator=(const StateDict& other);
  StateDict& operator=(StateDict&& other) noexcept;
  ~StateDict();
  /// From a dict whose keys are text. Throws Error(kTypeMismatch) for anything else.
  explicit StateDict(const c10::IValue& dict);

  /// The value of that key, which is added (as None) when there is none.
  c10::IValue& operator[](std::string_view key);
  /// Throws Error(kEntryNotFound) that names the key.
  [[nodiscard]] const c10::IValue& at(std::string_view key) const;
  [[nodiscard]] bool contains(std::string_view key) const noexcept;
  /// Adds the key, or replaces its value.
  void set(std::string_view key, c10::IValue value);
  void erase(std::string_view key);
  [[nodiscard]] std::size_t size() const noexcept { return items_.size(); }
  [[nodiscard]] auto begin() const noexcept { return items_.begin(); }
  [[nodiscard]] auto end() const noexcept { return items_.end(); }

  /// The value as a T: bool, an integer or floating type (which takes an integer too), std::string, at::Tensor,
  /// StateDict, Bytes, Shard, or a std::vector of these. Throws Error(kTypeMismatch) that names the key.
  template <typename T>
  [[nodiscard]] T get(std::string_view key) const;

  /// A dict with the same items, as nested dicts are kept.
  operator c10::IValue() const;  // NOLINT(google-explicit-constructor)

  /// True: Python's OrderedDict instead of dict, as the state of a module is.
  [[nodiscard]] bool ordered() const noexcept { return ordered_; }
  void set_ordered(bool ordered) noexcept { ordered_ = ordered; }

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>()(text); }
  };

  std::vector<Item> items_;
  std::unordered_map<std::string, std::size_t, Hash, std::equal_to<>> index_;
  bool ordered_ = false;
};

/// Python's `bytes` as an IValue, which has no type of its own for them.
c10::IValue to_ivalue(Bytes bytes);

/// This rank's part of a tensor that is divided over the ranks: what DTensor and ShardedTensor are in Python, which
/// restores it as either, or whole. A restore fills `tensor` with what it covers, however the saved one was divided.
struct Shard {
  at::Tensor tensor;
  std::vector<std::int64_t> shape;    ///< of the whole
  std::vector<std::int64_t> offsets;  ///< of `tensor` in the whole
  /// For a take: the ranks that hold the same part with the same content, this one among them, ascending; it is stored
  /// once. Empty: only this one.
  std::vector<std::int64_t> replicas = {};
};

/// A shard as a value of a StateDict.
c10::IValue to_ivalue(Shard shard);

/// Something with a state. A class of yours need not derive from it: the two functions are enough.
class Stateful {
 public:
  virtual ~Stateful() = default;
  Stateful() = default;
  Stateful(const Stateful&) = delete;
  Stateful& operator=(const Stateful&) = delete;

  /// The state. Its tensors are the object's own, not copies: a restore fills them in place.
  virtual StateDict state_dict() = 0;
  /// Takes the state back. Tensors that state_dict() had with the saved dtype and shape are the same ones.
  virtual void load_state_dict(const StateDict& state) = 0;
};

/// A class of yours that can be in an AppState.
template <typename T>
concept HasStateDict = requires(T& object, const StateDict& state) {
  { object.state_dict() } -> std::convertible_to<StateDict>;
  object.load_state_dict(state);
};

/// The global random number generators, as torchsnapshot.RNGState of Python: torch's CPU generator, and those of the
/// CUDA devices that this process uses. A take leaves them as they were; a restore sets them as the last thing. The
/// states of numpy and Python's random in a snapshot of Python are left alone.
struct RNGState {};

namespace detail {

std::shared_ptr<Stateful> wrap_module(std::shared_ptr<torch::nn::Module> module);
std::shared_ptr<Stateful> wrap_optimizer(torch::optim::Optimizer& optimizer);
std::shared_ptr<Stateful> wrap_scheduler(torch::optim::LRScheduler& scheduler);
std::shared_ptr<Stateful> wrap_plateau(torch::optim::ReduceLROnPlateauScheduler& scheduler);
std::shared_ptr<Stateful> wrap_values(StateDict& values);
std::shared_ptr<Stateful> wrap_rng();

/// An object of the user's, which outlives this.
template <HasStateDict T>
class Reference final : public Stateful {
 public:
  explicit Reference(T& object) : object_(object) {}
  StateDict state_dict() override { return object_.state_dict(); }
  void load_state_dict(const StateDict& state) override { object_.load_state_dict(state); }

 private:
  T& object_;
};

/// The stateful, which keeps what it refers to.
std::shared_ptr<Stateful> keep_alive(std::shared_ptr<void> object, std::shared_ptr<Stateful> stateful);

/// Throws Error(kInvalidArgument): an AppState can't refer to nothing.
[[noreturn]] void fail_empty();

template <typename T>
concept HoldsModule = requires(T& object) {
  { object.ptr() } -> std::convertible_to<std::shared_ptr<torch::nn::Module>>;
};
template <typename>
inline constexpr bool kNever = false;

template <typename T>
std::shared_ptr<Stateful> wrap(T& object) {
  if constexpr (std::is_same_v<T, StateDict>) {
    return wrap_values(object);
  } else if constexpr (HasStateDict<T>) {
    return std::make_shared<Reference<T>>(object);
  } else if constexpr (std::derived_from<T, torch::nn::Module>) {
    return wrap_module(std::shared_ptr<torch::nn::Module>(std::shared_ptr<void>(), &object));  // not owned
  } else if constexpr (HoldsModule<T>) {
    if (object.is_empty()) fail_empty();
    return wrap_module(object.ptr());
  } else if constexpr (std::derived_from<T, torch::optim::Optimizer>) {
    return wrap_optimizer(object);
  } else if constexpr (std::derived_from<T, torch::optim::LRScheduler>) {
    return wrap_scheduler(object);
  } else if constexpr (std::derived_from<T, torch::optim::ReduceLROnPlateauScheduler>) {
    return wrap_plateau(object);
  } else {
    static_assert(kNever<T>, "this has no state: give it state_dict() and load_state_dict(), or use a StateDict");
  }
}

}  // namespace detail

/// What a program saves and restores: objects by key. It refers to them (a module holder, a shared_ptr: shares them),
/// so they outlive it. Not thread-safe; nothing may change the objects during a take or restore.
class AppState {
 public:
  /// A key and an object: a torch::nn::Module (or holder, AnyModule, shared_ptr), an optimizer of torch::optim, a
  /// scheduler, a StateDict, RNGState(), or anything that HasStateDict.
  class Item {
   public:
    template <typename T>
    Item(std::string key, T&& object) : key_(std::move(key)), stateful_(make(std::forward<T>(object))) {}

   private:
    friend class AppState;
    std::string key_;
    std::shared_ptr<Stateful> stateful_;
  };

  AppState() = default;
  AppState(std::initializer_list<Item> items);

  /// Throws Error(kInvalidArgument) when the key is taken, or for a second RNGState.
  void add(Item item);
  /// In the order of adding.
  [[nodiscard]] const std::vector<std::pair<std::string, std::shared_ptr<Stateful>>>& items() const noexcept {
    return items_;
  }

 private:
  template <typename T>
  struct IsUnique : std::false_type {};
  template <typename T, typename D>
  struct IsUnique<std::unique_ptr<T, D>> : std::true_type {};
  template <typename T>
  struct IsShared : std::false_type {};
  template <typename T>
  struct IsShared<std::shared_ptr<T>> : std::true_type {};

  template <typename T>
  static std::shared_ptr<Stateful> make(T&& object) {
    using Object = std::remove_cvref_t<T>;
    if constexpr (std::is_same_v<Object, RNGState>) {
      return detail::wrap_rng();
    } else if constexpr (std::is_convertible_v<Object, std::shared_ptr<Stateful>>) {
      return std::forward<T>(object);
    } else if constexpr (IsShared<Object>::value) {
      if (!object) detail::fail_empty();
      return detail::keep_alive(object, detail::wrap(*object));
    } else if constexpr (detail::HoldsModule<Object> && !HasStateDict<Object>) {
      if (object.is_empty()) detail::fail_empty();
      return detail::wrap_module(object.ptr());
    } else {
      static_assert(std::is_lvalue_reference_v<T>, "an AppState refers to its objects: give this one a name");
      if constexpr (IsUnique<Object>::value) {
        if (!object) detail::fail_empty();
        return detail::wrap(*object);
      } else {
        return detail::wrap(object);
      }
    }
  }

  std::vector<std::pair<std::string, std::shared_ptr<Stateful>>> items_;
};

/// The ranks of a program that has a c10d::Store in common (TCPStore, FileStore, or a PrefixStore over one), for
/// TakeOptions::coordinator and RestoreOptions::coordinator. Every rank makes as many over one store, in the same
/// order; ranks that were started again need another store or prefix. It is used by one take or restore at a time, but
/// may be handed to the next while an async_take is pending. An exchange waits for the slowest rank for `timeout`
/// (without one: the store's own); when it fails, all ranks have to make a new coordinator. It keeps the store alive.
/// When it goes, rank 0 waits, at most for 5 s, until the others have read what it told them, as its process may host
/// the store. Throws Error(kInvalidArgument), or Error(kIo) when the store fails.
std::shared_ptr<Coordinator> make_coordinator(c10::intrusive_ptr<c10d::Store> store, std::int64_t rank,
                                              std::int64_t world_size,
                                              std::optional<std::chrono::milliseconds> timeout = std::nullopt);

/// What to do with an object of the snapshot that only Python can make: a class, a numpy array, a set.
enum class PythonObjects {
  kError,  ///< Error(kUnsupported) that names the entry, before anything was changed
  kSkip,   ///< left out of the state, and listed in RestoreReport::skipped
};

using torchsnapshot::ReplicatedRead;
using torchsnapshot::TakeOptions;

struct RestoreOptions {
  IoOptions io = {};
  /// True: a module has to have exactly the saved names, and every key of the app state has to be in the snapshot; else
  /// Error(kMismatch) or Error(kEntryNotFound) before anything was changed. False: what does not match is reported.
  bool strict = true;
  PythonObjects python_objects = PythonObjects::kError;
  /// True: damaged bytes are reported (RestoreReport::corrupt) instead of being an error; see the engine's
  /// RestoreOptions.
  bool keep_going = false;
  /// The ranks that restore together, each what belongs to it (docs/distributed.md). An error of one before any object
  /// was changed is an error on all. Null: this process alone, as rank 0.
  std::shared_ptr<Coordinator> coordinator = nullptr;
  /// As the engine's. A coordinator over a c10d::Store can't hand bytes round, so with it each rank reads for itself.
  ReplicatedRead replicated_read = ReplicatedRead::kAuto;
};

struct ReadOptions {
  IoOptions io = {};
  PythonObjects python_objects = PythonObjects::kError;
  /// Of read_state: whose state.
  std::int64_t rank = 0;
};

/// What could not be matched one to one. Paths are "key/sub/path".
struct RestoreReport : torchsnapshot::RestoreReport {
  std::vector<std::string> skipped;  ///< objects that only Python can make (PythonObjects::kSkip)
};

class PendingSnapshot;

/// A handle to a snapshot, as torchsnapshot::Snapshot, for torch's types. Nothing is read until needed. Thread-safe.
/// Every function throws torchsnapshot::Error.
class Snapshot {
 public:
  explicit Snapshot(const std::string& url, const StorageOptions& storage_options = {});
  explicit Snapshot(std::shared_ptr<Storage> storage);

  /// Saves the state of every object in `app` and commits it durably. A snapshot already at that place stays valid
  /// until the new one commits, and is then removed. With several ranks (TakeOptions::coordinator) every rank calls it;
  /// rank 0's `url` counts, and state_dict() is called in the order of the keys.
  static Snapshot take(const std::string& url, const AppState& app, const TakeOptions& options = {},
                       const StorageOptions& storage_options = {});
  static Snapshot take(std::shared_ptr<Storage> storage, const AppState& app, const TakeOptions& options = {});

  /// As take, but returns once the content is fixed: training may go on and change everything. What fails later comes
  /// from the result; see torchsnapshot::Snapshot::async_take.
  static PendingSnapshot async_take(const std::string& url, const AppState& app, const TakeOptions& options = {},
                                    const StorageOptions& storage_options = {});
  static PendingSnapshot async_take(std::shared_ptr<Storage> storage, const AppState& app,
                                    const TakeOptions& options = {});

  /// Reads the state of every object in `app` back. A tensor with the saved dtype and shape is filled in place, without
  /// a second copy; one of a module that has another is an Error(kMismatch) that names the path.
  RestoreReport restore(const AppState& app, const RestoreOptions& options = {}) const;

  /// One entry or subtree, by its path with the rank ("0/model/layers.0.weight"), as new objects on the CPU.
  [[nodiscard]] c10::IValue read_object(const std::string& path, const ReadOptions& options = {}) const;
  /// The tensor at `path`, sharded ones as a whole. Throws Error(kTypeMismatch) when it is none.
  [[nodiscard]] at::Tensor read_tensor(const std::string& path, const ReadOptions& options = {}) const;
  /// Reads the tensor at `path` into `out`, on any device. Throws Error(kMismatch) for another dtype or shape.
  void read_into(const std::string& path, const at::Tensor& out, const ReadOptions& options = {}) const;
  /// The part [offsets, offsets + sizes) of the tensor at `path`; only its bytes are read.
  [[nodiscard]] at::Tensor read_shard(const std::string& path, const std::vector<std::int64_t>& offsets,
                                      const std::vector<std::int64_t>& sizes, const ReadOptions& options = {}) const;
  /// The same into `out`, whose sizes say how much.
  void read_shard_into(const std::string& path, const std::vector<std::int64_t>& offsets, const at::Tensor& out,
                       const ReadOptions& options = {}) const;
  /// The state of one key as rank `options.rank` sees it, as new objects on the CPU.
  [[nodiscard]] StateDict read_state(const std::string& key, const ReadOptions& options = {}) const;

  /// True when there is a committed snapshot; whether it can be read is not looked at. Throws when the storage fails.
  [[nodiscard]] bool exists() const;
  /// The manifest; read once. Throws Error(kNotASnapshot) when there is none or it can't be read.
  [[nodiscard]] std::shared_ptr<const SnapshotMetadata> metadata() const { return core_.metadata(); }
  /// The engine's handle.
  [[nodiscard]] const torchsnapshot::Snapshot& core() const noexcept { return core_; }

 private:
  friend class PendingSnapshot;
  explicit Snapshot(torchsnapshot::Snapshot core) : core_(std::move(core)) {}

  torchsnapshot::Snapshot core_;
};

/// A take that goes on by itself, as torchsnapshot::PendingSnapshot: when the last copy goes, it waits for the take to
/// end. Thread-safe.
class PendingSnapshot {
 public:
  [[nodiscard]] const std::string& url() const noexcept { return core_.url(); }
  /// True when the take has ended, well or not.
  [[nodiscard]] bool done() const { return core_.done(); }
  /// Blocks until the take has ended, at most for `timeout`. True when it has.
  [[nodiscard]] bool wait_for(std::chrono::milliseconds timeout) const { return core_.wait_for(timeout); }
  /// Blocks until the take has ended, and returns the snapshot, or throws what ended the take; every time.
  Snapshot wait() const { return Snapshot(core_.wait()); }
  /// As torchsnapshot::PendingSnapshot: with StagingMode::kPromised, before tensors change. A stream of torch's is a
  /// DeviceStream by its device_index() and native_handle().
  void wait_staged() const { core_.wait_staged(); }
  void let_wait_staged(std::span<const DeviceStream> streams) const { core_.let_wait_staged(streams); }
  /// Tells the take to stop: it ends soon, without a snapshot, unless it was committed before.
  void cancel() const { core_.cancel(); }

 private:
  friend class Snapshot;
  explicit PendingSnapshot(torchsnapshot::PendingSnapshot core) : core_(std::move(core)) {}

  torchsnapshot::PendingSnapshot core_;
};

namespace detail {

/// The value, or Error(kTypeMismatch) that names the key.
bool as_bool(const c10::IValue& value, std::string_view key);
std::int64_t as_int(const c10::IValue& value, std::string_view key);
double as_double(const c10::IValue& value, std::string_view key);
std::string as_string(const c10::IValue& value, std::string_view key);
at::Tensor as_tensor(const c10::IValue& value, std::string_view key);
Bytes as_bytes(const c10::IValue& value, std::string_view key);
Shard as_shard(const c10::IValue& value, std::string_view key);
StateDict as_state_dict(const c10::IValue& value, std::string_view key);
std::vector<c10::IValue> as_list(const c10::IValue& value, std::string_view key);
[[noreturn]] void fail_range(std::string_view key);

template <typename T>
struct IsVector : std::false_type {};
template <typename T>
struct IsVector<std::vector<T>> : std::true_type {};

template <typename T>
T convert(const c10::IValue& value, std::string_view key) {
  if constexpr (std::is_same_v<T, bool>) {
    return as_bool(value, key);
  } else if constexpr (std::is_integral_v<T>) {
    const std::int64_t number = as_int(value, key);
    if (!std::in_range<T>(number)) fail_range(key);
    return static_cast<T>(number);
  } else if constexpr (std::is_floating_point_v<T>) {
    return static_cast<T>(as_double(value, key));
  } else if constexpr (std::is_same_v<T, std::string>) {
    return as_string(value, key);
  } else if constexpr (std::is_same_v<T, at::Tensor>) {
    return as_tensor(value, key);
  } else if constexpr (std::is_same_v<T, Bytes>) {
    return as_bytes(value, key);
  } else if constexpr (std::is_same_v<T, Shard>) {
    return as_shard(value, key);
  } else if constexpr (std::is_same_v<T, StateDict>) {
    return as_state_dict(value, key);
  } else if constexpr (IsVector<T>::value) {
    T result;
    for (const c10::IValue& item : as_list(value, key)) result.push_back(convert<typename T::value_type>(item, key));
    return result;
  } else {
    static_assert(kNever<T>, "StateDict::get has no such type: use at()");
  }
}

}  // namespace detail

template <typename T>
T StateDict::get(std::string_view key) const {
  return detail::convert<T>(at(key), key);
}

}  // namespace torchsnapshot::libtorch
