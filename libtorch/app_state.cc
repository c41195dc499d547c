#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/detail/CUDAHooksInterface.h>

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "libtorch/adapter.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot::libtorch {
namespace {

// The names in the state dict of torchsnapshot.RNGState.
constexpr std::string_view kCpu = "rng_state";
constexpr std::string_view kCuda = "cuda_rng_state";

at::Tensor state_of(at::Generator generator) {
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return generator.get_state();
}

void set_state(at::Generator generator, const at::Tensor& state) {
  const at::Tensor bytes = state.detach().to(at::kCPU, at::kByte).contiguous();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_state(bytes);
}

at::Generator cuda_generator(std::int64_t device) {
  return at::globalContext().defaultGenerator(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device)));
}

std::int64_t cuda_devices() {
  return at::hasCUDA() ? at::detail::getCUDAHooks().deviceCount() : 0;
}

/// Asking must not start CUDA in a process that does without it.
bool uses_cuda() {
  for (std::int64_t device = 0; device < cuda_devices(); ++device) {
    if (at::detail::getCUDAHooks().hasPrimaryContext(static_cast<at::DeviceIndex>(device))) return true;
  }
  return false;
}

class RngAdapter final : public Adapter {
 public:
  StateDict state_dict() override {
    StateDict state{{std::string(kCpu), state_of(at::detail::getDefaultCPUGenerator())}};
    if (!uses_cuda()) return state;
    c10::List<at::Tensor> devices;
    for (std::int64_t device = 0; device < cuda_devices(); ++device)
      devices.push_back(state_of(cuda_generator(device)));
    state.set(kCuda, devices);
    return state;
  }

  /// As Python's: the first devices that there are here; none where there is no CUDA. A rank beyond the saved world
  /// has none saved, and keeps what it has; the restore's report says so.
  void load_state_dict(const StateDict& state) override {
    if (!state.contains(kCpu)) return;
    set_state(at::detail::getDefaultCPUGenerator(), state.get<at::Tensor>(kCpu));
    if (!state.contains(kCuda)) return;
    std::int64_t device = 0;
    for (const at::Tensor& saved : state.get<std::vector<at::Tensor>>(kCuda)) {
      if (device == cuda_devices()) break;
      set_state(cuda_generator(device++), saved);
    }
  }

  [[nodiscard]] bool is_rng() const noexcept override { return true; }
};

class ValuesAdapter final : public Adapter {
 public:
  explicit ValuesAdapter(StateDict& values) : values_(values) {}
  StateDict state_dict() override { return values_; }
  /// As Python's StateDict: keys that the state lacks keep their values.
  void load_state_dict(const StateDict& state) override {
    for (const auto& [key, value] : state) values_.set(key, value);
  }

 private:
  StateDict& values_;
};

}  // namespace

AppState::AppState(std::initializer_list<Item> items) {
  for (const Item& item : items) add(item);
}

void AppState::add(Item item) {
  const Adapter* adapter = adapter_of(*item.stateful_);
  for (const auto& [key, stateful] : items_) {
    if (key == item.key_) throw Error(ErrorCode::kInvalidArgument, "the app state has the key '" + key + "' twice");
    const Adapter* other = adapter_of(*stateful);
    if (adapter != nullptr && adapter->is_rng() && other != nullptr && other->is_rng()) {
      throw Error(ErrorCode::kInvalidArgument,
                  "the app state has two RNGStates, '" + key + "' and '" + item.key_ + "': keep one of them");
    }
  }
  items_.emplace_back(std::move(item.key_), std::move(item.stateful_));
}

std::shared_ptr<Stateful> detail::wrap_values(StateDict& values) {
  return std::make_shared<ValuesAdapter>(values);
}

std::shared_ptr<Stateful> detail::wrap_rng() {
  return std::make_shared<RngAdapter>();
}

}  // namespace torchsnapshot::libtorch
