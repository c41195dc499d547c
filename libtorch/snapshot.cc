#include <c10/util/Exception.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/path_codec.h"
#include "libtorch/adapter.h"
#include "libtorch/device_copier.h"
#include "libtorch/tensor_leaf.h"
#include "libtorch/translate.h"
#include "manifest/rank_view.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/torch.h"

namespace torchsnapshot::libtorch {
namespace {

/// Runs `body`; what torch throws in it comes out as the engine's error.
template <typename Body>
auto translating(const std::string& doing, Body body) {
  try {
    return body();
  } catch (const c10::Error& error) {
    throw Error(ErrorCode::kInternal, doing + ": libtorch: " + error.what_without_backtrace());
  }
}

using Items = std::vector<std::pair<std::string, Stateful*>>;

/// The items of `app`, the RNGState first or last. With several ranks, by key: a state_dict() may wait for other ranks,
/// and those may have other keys in another order.
Items ordered(const AppState& app, const Coordinator* ranks, bool rng_first) {
  Items items;
  for (const auto& [key, stateful] : app.items()) items.emplace_back(key, stateful.get());
  if (ranks != nullptr) std::sort(items.begin(), items.end());
  std::stable_partition(items.begin(), items.end(), [rng_first](const auto& item) {
    const Adapter* adapter = adapter_of(*item.second);
    return (adapter != nullptr && adapter->is_rng()) == rng_first;
  });
  return items;
}

/// Runs what goes wrong on this rank alone; the others are told by `refuse`, and fail too.
template <typename Body>
auto told_to_others(Coordinator* ranks, void (*refuse)(Coordinator&, const Error&), const Body& body) {
  if (ranks == nullptr) return body();
  const auto tell = [&](const Error& error) {
    try {
      refuse(*ranks, error);
    } catch (const Error&) {  // this rank throws its own
      return;
    }
  };
  try {
    return body();
  } catch (const Error& error) {
    tell(error);
    throw;
  } catch (const c10::Error& error) {
    tell(Error(ErrorCode::kInternal, std::string("libtorch: ") + error.what_without_backtrace()));
    throw;
  } catch (const std::exception& error) {
    tell(Error(ErrorCode::kInternal, error.what()));
    throw;
  }
}

/// Sets the generators again when a state_dict() of the user has drawn numbers.
class RngUnchanged {
 public:
  RngUnchanged(Stateful& rng, StateDict state) : rng_(rng), state_(std::move(state)) {}
  RngUnchanged(const RngUnchanged&) = delete;
  RngUnchanged& operator=(const RngUnchanged&) = delete;
  ~RngUnchanged() {
    try {
      rng_.load_state_dict(state_);
    } catch (...) {  // NOLINT(bugprone-empty-catch): it took this very state before
    }
  }

 private:
  Stateful& rng_;
  StateDict state_;
};

/// What a take saves of an app state. While it is there, and no longer, the generators may have drawn.
class SavedState {
 public:
  SavedState(const AppState& app, const Coordinator* ranks) {
    install_device_copier();
    ToValue to;
    for (const auto& [key, stateful] : ordered(app, ranks, true)) {
      StateDict state = stateful->state_dict();
      values_.emplace_back(key, to.to_save(key, state));
      const Adapter* adapter = adapter_of(*stateful);
      if (adapter != nullptr && adapter->is_rng()) rng_.emplace(*stateful, std::move(state));
    }
  }
  [[nodiscard]] const torchsnapshot::AppState& values() const noexcept { return values_; }

 private:
  torchsnapshot::AppState values_;
  std::optional<RngUnchanged> rng_;
};

/// A StateDict has text as keys.
void check_is_dict(const SavedKey& saved) {
  const auto root = saved.entries.find("");
  const auto* dict = root == saved.entries.end() ? nullptr : std::get_if<DictEntry>(root->second);
  if (dict == nullptr) {
    throw Error(ErrorCode::kUnsupported, "what is saved under '" + saved.key + "' is no dict: use read_object");
  }
  for (const Key& key : dict->keys) {
    if (!key.is_int) continue;
    throw Error(ErrorCode::kUnsupported,
                "what is saved under '" + saved.key + "' has the number " + key.text + " as a key: use read_object");
  }
}

/// Everything that can be said against the restore from the metadata alone, before anything is changed.
void check(const SnapshotMetadata& metadata, const Items& items, const RestoreOptions& options) {
  const RankView view(metadata, options.coordinator ? options.coordinator->rank() : 0);
  std::unordered_map<std::string_view, SavedKey> saved;
  std::vector<std::string> paths;  // what the keys of `saved` point into
  paths.reserve(items.size());
  for (const auto& [key, stateful] : items) {
    paths.push_back(encode_component(key));
    saved[paths.back()].key = key;
  }
  for (const ViewEntry& entry : view.entries()) {
    const std::string_view path = entry.path;
    const std::size_t end = std::min(path.find('/'), path.size());
    const auto found = saved.find(path.substr(0, end));
    if (found == saved.end()) continue;
    found->second.entries.emplace(end == path.size() ? std::string_view() : path.substr(end + 1), entry.entry);
    const auto* primitive = std::get_if<PrimitiveEntry>(entry.entry);
    if (options.python_objects == PythonObjects::kError && primitive != nullptr &&
        primitive->type == PrimitiveType::kInt && !Integer(primitive->serialized_value).to_int64()) {
      throw Error(ErrorCode::kUnsupported, "entry '" + entry.path +
                                               "' is an integer of more than 64 bits, which C++ "
                                               "can't have: " +
                                               primitive->serialized_value.substr(0, 40));
    }
  }
  for (std::size_t i = 0; i < items.size(); ++i) {
    const SavedKey& key = saved[paths[i]];
    if (key.entries.empty()) continue;  // the engine names the keys that there are
    check_is_dict(key);
    if (Adapter* adapter = adapter_of(*items[i].second)) adapter->check(key, options.strict);
  }
}

torchsnapshot::ReadOptions read_options(const ReadOptions& options, FromValue& from) {
  torchsnapshot::ReadOptions result;
  result.io = options.io;
  result.allocate = allocate;
  result.decode = [&from](const std::string& path, const std::string& location, const Value& leaf) {
    return from.decode(path, location, leaf);
  };
  return result;
}

std::string inner_path(const std::string& path) {
  const std::size_t slash = path.find('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

/// A view of memory to read into. Throws Error(kInvalidArgument) for what is no plain memory.
TensorView target_view(const at::Tensor& out) {
  if (!out.defined() || !is_plain(out)) {
    throw Error(ErrorCode::kInvalidArgument,
                "the tensor to read into has no plain memory (undefined, meta, sparse, "
                "quantized, or a conj or neg view)");
  }
  return view_of(out, *to_dtype(out.scalar_type()), true);
}

void note_change(const at::Tensor& out) {
  if (!out.is_inference()) out.unsafeGetTensorImpl()->bump_version();
}

/// The global shape and dtype of the tensor at `path`.
std::pair<DType, Dims> type_at(const SnapshotMetadata& metadata, const std::string& path) {
  std::int64_t rank = 0;
  std::string_view inner;
  std::tie(rank, inner) = split_rank(path);
  const RankView view(metadata, rank);
  const Entry* entry = view.find(inner);
  if (entry == nullptr) {
    throw Error(ErrorCode::kEntryNotFound, "the snapshot has no entry '" + path + "'");
  }
  if (const auto* tensor = std::get_if<TensorEntry>(entry)) return {tensor->dtype, tensor->shape};
  if (const auto* chunked = std::get_if<ChunkedTensorEntry>(entry)) return {chunked->dtype, chunked->shape};
  if (const auto* sharded = std::get_if<ShardedTensorEntry>(entry); sharded != nullptr && !sharded->shards.empty()) {
    return {sharded->shards[0].tensor.dtype, global_shape(*sharded)};
  }
  throw Error(ErrorCode::kTypeMismatch, "'" + path + "' is no tensor, but a " + std::string(entry_type_name(*entry)));
}

/// The storage of a take: of rank 0's URL.
std::shared_ptr<Storage> open_together(const std::string& url, const TakeOptions& options,
                                       const StorageOptions& storage_options) {
  Coordinator* ranks = options.coordinator.get();
  const std::string agreed = ranks == nullptr ? url : agree_on_url(*ranks, url, options.io.on_notice);
  return told_to_others(ranks, refuse_take, [&] { return open_storage(agreed, storage_options); });
}

std::unique_ptr<SavedState> saved_state(const AppState& app, const TakeOptions& options) {
  Coordinator* ranks = options.coordinator.get();
  return told_to_others(ranks, refuse_take, [&] { return std::make_unique<SavedState>(app, ranks); });
}

}  // namespace

Snapshot::Snapshot(const std::string& url, const StorageOptions& storage_options) : core_(url, storage_options) {}

Snapshot::Snapshot(std::shared_ptr<Storage> storage) : core_(std::move(storage)) {}

Snapshot Snapshot::take(const std::string& url, const AppState& app, const TakeOptions& options,
                        const StorageOptions& storage_options) {
  return take(open_together(url, options, storage_options), app, options);
}

Snapshot Snapshot::take(std::shared_ptr<Storage> storage, const AppState& app, const TakeOptions& options) {
  return translating("taking a snapshot", [&] {
    const auto state = saved_state(app, options);
    return Snapshot(torchsnapshot::Snapshot::take(std::move(storage), state->values(), options));
  });
}

PendingSnapshot Snapshot::async_take(const std::string& url, const AppState& app, const TakeOptions& options,
                                     const StorageOptions& storage_options) {
  return async_take(open_together(url, options, storage_options), app, options);
}

PendingSnapshot Snapshot::async_take(std::shared_ptr<Storage> storage, const AppState& app,
                                     const TakeOptions& options) {
  return translating("taking a snapshot", [&] {
    const auto state = saved_state(app, options);
    return PendingSnapshot(torchsnapshot::Snapshot::async_take(std::move(storage), state->values(), options));
  });
}

RestoreReport Snapshot::restore(const AppState& app, const RestoreOptions& options) const {
  install_device_copier();
  return translating("restoring from " + core_.storage()->url(), [&] {
    Items items;
    ToValue to;
    FromValue from(to, options.python_objects);
    torchsnapshot::AppState targets;
    torchsnapshot::RestoreOptions core_options;
    told_to_others(options.coordinator.get(), refuse_restore, [&] {
      items = ordered(app, options.coordinator.get(), false);
      check(*core_.metadata(), items, options);
      for (const auto& [key, stateful] : items) {
        targets.emplace_back(key, to.to_fill(key, stateful->state_dict()));
        const Adapter* adapter = adapter_of(*stateful);
        if (adapter != nullptr && adapter->is_exact()) core_options.exact_keys.push_back(key);
      }
    });
    core_options.io = options.io;
    core_options.strict = options.strict;
    core_options.keep_going = options.keep_going;
    core_options.coordinator = options.coordinator;
    core_options.replicated_read = options.replicated_read;
    core_options.allocate = allocate;
    core_options.decode = [&from](const std::string& path, const std::string& location, const Value& leaf) {
      return from.decode(path, location, leaf);
    };
    core_options.on_state = [&](std::size_t index, Value&& state) {
      const auto& [key, stateful] = items[index];
      stateful->load_state_dict(from.convert_state(key, state));
    };
    RestoreReport report;
    static_cast<torchsnapshot::RestoreReport&>(report) = core_.restore(targets, core_options);
    report.skipped = from.skipped();
    return report;
  });
}

c10::IValue Snapshot::read_object(const std::string& path, const ReadOptions& options) const {
  return translating("reading '" + path + "'", [&] {
    const ToValue to;
    FromValue from(to, options.python_objects);
    return from.convert(inner_path(path), core_.read_object(path, nullptr, read_options(options, from)));
  });
}

at::Tensor Snapshot::read_tensor(const std::string& path, const ReadOptions& options) const {
  const c10::IValue value = read_object(path, options);
  if (!value.isTensor()) throw Error(ErrorCode::kTypeMismatch, "'" + path + "' is no tensor");
  return value.toTensor();
}

void Snapshot::read_into(const std::string& path, const at::Tensor& out, const ReadOptions& options) const {
  install_device_copier();
  translating("reading '" + path + "'", [&] {
    const ToValue to;
    FromValue from(to, options.python_objects);
    const Value target = target_view(out);
    const c10::IValue value =
        from.convert(inner_path(path), core_.read_object(path, &target, read_options(options, from)));
    if (!value.isTensor() || !value.toTensor().is_same(out)) {
      throw Error(ErrorCode::kMismatch, "'" + path + "' could not be read into the tensor");
    }
    note_change(out);
  });
}

at::Tensor Snapshot::read_shard(const std::string& path, const std::vector<std::int64_t>& offsets,
                                const std::vector<std::int64_t>& sizes, const ReadOptions& options) const {
  const TensorView memory = allocate(type_at(*core_.metadata(), path).first, sizes);
  read_shard_into(path, offsets, tensor_of(memory), options);
  return tensor_of(memory);
}

void Snapshot::read_shard_into(const std::string& path, const std::vector<std::int64_t>& offsets, const at::Tensor& out,
                               const ReadOptions& options) const {
  install_device_copier();
  translating("reading a part of '" + path + "'", [&] {
    const auto [dtype, shape] = type_at(*core_.metadata(), path);
    const TensorView view = target_view(out);
    bool inside = offsets.size() == shape.size() && view.shape.size() == shape.size();
    for (std::size_t d = 0; inside && d < shape.size(); ++d) {
      inside = offsets[d] >= 0 && view.shape[d] <= shape[d] && offsets[d] <= shape[d] - view.shape[d];
    }
    if (!inside) {
      throw Error(ErrorCode::kInvalidArgument, "the part to read of '" + path + "' does not lie within the tensor");
    }
    const ToValue to;
    FromValue from(to, options.python_objects);
    torchsnapshot::ShardedTensor target;
    target.dtype = view.dtype;
    target.shape = shape;
    target.shards.push_back({.box = {.offsets = offsets, .sizes = view.shape}, .view = view});
    const Value wanted = std::move(target);
    const Value result = core_.read_object(path, &wanted, read_options(options, from));
    if (result.get_if<torchsnapshot::ShardedTensor>() == nullptr) {
      throw Error(ErrorCode::kUnsupported, "'" + path + "' is stored in a form of which no part can be read");
    }
    note_change(out);
  });
}

bool Snapshot::exists() const {
  const std::string name(kMetadataName);
  try {
    (void)core_.storage()->sizes({&name, 1}, {});
    return true;
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kNotFound) return false;
    throw;
  }
}

StateDict Snapshot::read_state(const std::string& key, const ReadOptions& options) const {
  return translating("reading the state of '" + key + "'", [&] {
    const ToValue to;
    FromValue from(to, options.python_objects);
    return from.convert_state(key, core_.read_state(key, options.rank, read_options(options, from)));
  });
}

}  // namespace torchsnapshot::libtorch
