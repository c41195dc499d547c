// What this face knows of the objects that torch has: more than a Stateful tells.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "torchsnapshot/manifest.h"
#include "torchsnapshot/torch.h"

namespace torchsnapshot::libtorch {

/// What a snapshot has under one key, before anything of it is read.
struct SavedKey {
  std::string key;  ///< the user's
  /// Entries by their path below the key, encoded; "" is the key's own.
  std::unordered_map<std::string_view, const Entry*> entries;
};

/// Dtype-free look at an entry: the shape of a tensor-like one, or null.
const Dims* saved_shape(const Entry& entry) noexcept;

class Adapter : public Stateful {
 public:
  /// True when every tensor has to have the saved dtype and shape.
  [[nodiscard]] virtual bool is_exact() const noexcept { return false; }
  /// True when it is saved first and restored last.
  [[nodiscard]] virtual bool is_rng() const noexcept { return false; }
  /// Throws when what is saved can't be taken; nothing has been changed yet.
  virtual void check(const SavedKey& /*saved*/, bool /*strict*/) {}
};

/// A stateful, and what it refers to.
class KeepAlive final : public Stateful {
 public:
  KeepAlive(std::shared_ptr<void> object, std::shared_ptr<Stateful> stateful)
      : object_(std::move(object)), stateful_(std::move(stateful)) {}
  StateDict state_dict() override { return stateful_->state_dict(); }
  void load_state_dict(const StateDict& state) override { stateful_->load_state_dict(state); }
  [[nodiscard]] Stateful& inner() const noexcept { return *stateful_; }

 private:
  std::shared_ptr<void> object_;
  std::shared_ptr<Stateful> stateful_;
};

/// The adapter behind a stateful; null when it is the user's own.
Adapter* adapter_of(Stateful& stateful) noexcept;

/// How libtorch's function names the tensors of a module: Python's state_dict() order and names.
StateDict module_state(const torch::nn::Module& module);

}  // namespace torchsnapshot::libtorch
