#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "core/path_codec.h"
#include "libtorch/adapter.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot::libtorch {
namespace {

/// Python's order: a module's own parameters, its buffers, then its children. A module or tensor that is there twice
/// has both names.
void collect(const torch::nn::Module& module, const std::string& prefix, StateDict& state) {
  for (const auto& item : module.named_parameters(false)) {
    if (item.value().defined()) state.set(prefix + item.key(), item.value());
  }
  for (const auto& item : module.named_buffers(false)) {
    if (item.value().defined()) state.set(prefix + item.key(), item.value());
  }
  for (const auto& child : module.named_children()) collect(*child.value(), prefix + child.key() + ".", state);
}

std::string list_of(std::vector<std::string> names) {
  constexpr std::size_t kShown = 20;
  std::sort(names.begin(), names.end());
  std::string text;
  for (std::size_t i = 0; i < names.size() && i < kShown; ++i) text += (i == 0 ? "'" : ", '") + names[i] + "'";
  if (names.size() > kShown) text += " and " + std::to_string(names.size() - kShown) + " more";
  return text;
}

class ModuleAdapter final : public Adapter {
 public:
  explicit ModuleAdapter(std::shared_ptr<torch::nn::Module> module) : module_(std::move(module)) {}

  StateDict state_dict() override { return module_state(*module_); }

  /// The tensors are the module's own, filled already.
  void load_state_dict(const StateDict& state) override {
    const at::NoGradGuard no_grad;
    const StateDict own = module_state(*module_);
    for (const auto& [name, value] : state) {
      if (!own.contains(name) || !value.isTensor()) continue;
      const at::Tensor& source = value.toTensor();
      const at::Tensor& target = own.at(name).toTensor();
      if (!source.is_same(target)) {
        target.detach().copy_(source);
      } else if (!target.is_inference()) {
        target.unsafeGetTensorImpl()->bump_version();  // autograd has to know, as after any change in place
      }
    }
  }

  [[nodiscard]] bool is_exact() const noexcept override { return true; }

  void check(const SavedKey& saved, bool strict) override {
    if (!strict) return;
    const StateDict own = module_state(*module_);
    std::vector<std::string> missing;
    std::vector<std::string> unexpected;
    for (const auto& [name, value] : own) {
      if (!saved.entries.contains(encode_component(name))) missing.push_back(name);
    }
    for (const auto& [path, entry] : saved.entries) {
      if (path.empty() || path.find('/') != std::string_view::npos) continue;
      std::string name = decode_component(path);
      if (!own.contains(name)) unexpected.push_back(std::move(name));
    }
    if (missing.empty() && unexpected.empty()) return;
    std::string message =
        "the module under the key '" + saved.key +
        "' is another one than was saved; nothing was changed (strict = false restores what matches):";
    if (!missing.empty()) message += "\n  not in the snapshot: " + list_of(std::move(missing));
    if (!unexpected.empty()) message += "\n  not in the module: " + list_of(std::move(unexpected));
    throw Error(ErrorCode::kMismatch, message);
  }

 private:
  std::shared_ptr<torch::nn::Module> module_;
};

}  // namespace

StateDict module_state(const torch::nn::Module& module) {
  StateDict state;
  state.set_ordered(true);
  collect(module, "", state);
  return state;
}

const Dims* saved_shape(const Entry& entry) noexcept {
  if (const auto* tensor = std::get_if<TensorEntry>(&entry)) return &tensor->shape;
  if (const auto* chunked = std::get_if<ChunkedTensorEntry>(&entry)) return &chunked->shape;
  return nullptr;
}

Adapter* adapter_of(Stateful& stateful) noexcept {
  if (auto* keeper = dynamic_cast<KeepAlive*>(&stateful)) return adapter_of(keeper->inner());
  return dynamic_cast<Adapter*>(&stateful);
}

void detail::fail_empty() {
  throw Error(ErrorCode::kInvalidArgument, "an AppState was given an empty module holder or pointer");
}

std::shared_ptr<Stateful> detail::keep_alive(std::shared_ptr<void> object, std::shared_ptr<Stateful> stateful) {
  return std::make_shared<KeepAlive>(std::move(object), std::move(stateful));
}

std::shared_ptr<Stateful> detail::wrap_module(std::shared_ptr<torch::nn::Module> module) {
  return std::make_shared<ModuleAdapter>(std::move(module));
}

}  // namespace torchsnapshot::libtorch
