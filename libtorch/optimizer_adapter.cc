// An optimizer as Python's Optimizer.state_dict() has it: {"state": {index: {…}}, "param_groups": [{options…, "params":
// [index, …]}, …]}, where the index counts the parameters of all groups in order.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/scalar_tensor.h>

#include <charconv>
#include <deque>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "libtorch/adapter.h"
#include "libtorch/optimizer_fields.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot::libtorch {
namespace {

using c10::IValue;
using torch::optim::Optimizer;
using torch::optim::OptimizerOptions;
using torch::optim::OptimizerParamState;

[[noreturn]] void fail(ErrorCode code, const std::string& what) {
  throw Error(code, "optimizer: " + what);
}

IValue new_dict(const c10::TypePtr& key) {
  return c10::impl::GenericDict(key, c10::AnyType::get());
}

/// A number of Python's, which may be an int, a float, a bool or a tensor with one element.
double number_of(const IValue& value, const std::string& name) {
  if (value.isDouble()) return value.toDouble();
  if (value.isInt()) return static_cast<double>(value.toInt());
  if (value.isBool()) return value.toBool() ? 1 : 0;
  if (value.isTensor() && value.toTensor().defined() && value.toTensor().numel() == 1) {
    return value.toTensor().item<double>();
  }
  fail(ErrorCode::kMismatch, "'" + name + "' is a " + value.tagKind() + " in the snapshot, not a number");
}

std::int64_t integer_of(const IValue& value, const std::string& name) {
  if (value.isInt()) return value.toInt();
  const double number = number_of(value, name);
  const auto integer = static_cast<std::int64_t>(number);
  if (!(number >= -0x1p62 && number <= 0x1p62) || static_cast<double>(integer) != number) {
    fail(ErrorCode::kMismatch, "'" + name + "' is not a whole number in the snapshot");
  }
  return integer;
}

// --- options

class SaveOptions {
 public:
  SaveOptions(StateDict& out, const StateDict& kept) : out_(out), kept_(kept) {}
  void operator()(const char* name, double value) { out_.set(name, value); }
  void operator()(const char* name, bool value) { out_.set(name, value); }
  void operator()(const char* name, std::int64_t value) { out_.set(name, value); }
  void operator()(const char* name, const std::tuple<double, double>& value) {
    out_.set(name, c10::ivalue::Tuple::create({std::get<0>(value), std::get<1>(value)}));
  }
  template <typename T>
  void operator()(const char* name, const std::optional<T>& value) {
    out_.set(name, value ? IValue(*value) : IValue());
  }
  void python_only(const char* name, const IValue& standard, Meaning /*meaning*/) {
    out_.set(name, kept_.contains(name) ? kept_.at(name) : standard);
  }

 private:
  StateDict& out_;
  const StateDict& kept_;
};

/// Options that a group of an older version lacks keep their values, as in Python.
class LoadOptions {
 public:
  LoadOptions(const StateDict& in, StateDict& kept) : in_(in), kept_(kept) {
    for (const auto& [name, value] : in) {
      if (name != "params") kept_.set(name, value);
    }
  }
  void operator()(const char* name, double& value) {
    if (const IValue* saved = use(name)) value = number_of(*saved, name);
  }
  void operator()(const char* name, bool& value) {
    if (const IValue* saved = use(name)) value = number_of(*saved, name) != 0;
  }
  void operator()(const char* name, std::int64_t& value) {
    if (const IValue* saved = use(name)) value = integer_of(*saved, name);
  }
  void operator()(const char* name, std::tuple<double, double>& value) {
    const IValue* saved = use(name);
    if (saved == nullptr) return;
    const std::vector<IValue> pair = detail::as_list(*saved, name);
    if (pair.size() != 2) fail(ErrorCode::kMismatch, "'" + std::string(name) + "' is no pair in the snapshot");
    value = {number_of(pair[0], name), number_of(pair[1], name)};
  }
  void operator()(const char* name, std::optional<std::int64_t>& value) {
    if (const IValue* saved = use(name)) {
      value = saved->isNone() ? std::nullopt : std::optional(integer_of(*saved, name));
    }
  }
  void operator()(const char* name, std::optional<std::string>& value) {
    if (const IValue* saved = use(name)) {
      value = saved->isNone() ? std::nullopt : std::optional(detail::as_string(*saved, name));
    }
  }
  void python_only(const char* name, const IValue& standard, Meaning meaning) {
    if (meaning == Meaning::kSpeed || !in_.contains(name)) return;
    const IValue& saved = in_.at(name);
    if (number_of(saved, name) != number_of(standard, name)) {
      fail(ErrorCode::kUnsupported, "the saved option '" + std::string(name) +
                                        "' makes Python compute other numbers, and libtorch has no such option");
    }
  }

 private:
  const IValue* use(const char* name) {
    kept_.erase(name);
    return in_.contains(name) ? &in_.at(name) : nullptr;
  }

  const StateDict& in_;
  StateDict& kept_;  ///< what only Python knows
};

// --- state of a parameter

class SaveState {
 public:
  explicit SaveState(const c10::impl::GenericDict& out) : out_(out) {}
  /// Python counts in a float tensor, of double precision when the default dtype has it. Floats end at 2^24.
  void step(std::int64_t value) {
    const bool wide = value > (std::int64_t{1} << 24) || at::get_default_dtype_as_scalartype() == at::kDouble;
    put("step", at::scalar_tensor(static_cast<double>(value), wide ? at::kDouble : at::kFloat));
  }
  void number(const char* name, std::int64_t value) { put(name, value); }
  void number(const char* name, double value) { put(name, value); }
  void tensor(const char* name, const at::Tensor& value) { optional_tensor(name, value); }
  void flat_tensor(const char* name, const at::Tensor& value) { optional_tensor(name, value); }
  void optional_tensor(const char* name, const at::Tensor& value) {
    if (value.defined()) put(name, value);
  }
  template <typename Tensors>
  void tensors(const char* name, const Tensors& values) {
    c10::impl::GenericList list(c10::AnyType::get());
    for (const at::Tensor& value : values) list.push_back(value.defined() ? IValue(value) : IValue());
    put(name, list);
  }
  void optional_tensors(const char* name, const std::optional<std::vector<at::Tensor>>& values) {
    if (values) tensors(name, *values);
  }
  static bool begin_optional(bool present, const char* /*first*/) { return present; }

 private:
  void put(const char* name, IValue value) { out_.insert(std::string(name), std::move(value)); }

  c10::impl::GenericDict out_;
};

class LoadState {
 public:
  LoadState(const StateDict& in, const at::Tensor& parameter, std::string where)
      : in_(in), parameter_(parameter), where_(std::move(where)) {}
  void step(std::int64_t& value) { value = integer_of(need("step"), where_ + "step"); }
  void number(const char* name, std::int64_t& value) { value = integer_of(need(name), where_ + name); }
  void number(const char* name, double& value) { value = number_of(need(name), where_ + name); }
  void tensor(const char* name, at::Tensor& value) {
    value = tensor_at(name, need(name));
    if (value.sizes() != parameter_.sizes()) {
      fail(ErrorCode::kMismatch, "'" + where_ + name + "' has another shape than its parameter");
    }
  }
  void optional_tensor(const char* name, at::Tensor& value) {
    value = at::Tensor();
    if (in_.contains(name) && !in_.at(name).isNone()) tensor(name, value);
  }
  /// A tensor of another shape, or a number that stands for one.
  void flat_tensor(const char* name, at::Tensor& value) {
    value = at::Tensor();
    if (!in_.contains(name) || in_.at(name).isNone()) return;
    const IValue& saved = in_.at(name);
    value = saved.isTensor() ? tensor_at(name, saved) : at::scalar_tensor(number_of(saved, name), parameter_.options());
  }
  template <typename Tensors>
  void tensors(const char* name, Tensors& values) {
    values.clear();
    for (const IValue& item : detail::as_list(need(name), where_ + name)) {
      values.push_back(item.isNone() ? at::Tensor() : tensor_at(name, item));
    }
  }
  void optional_tensors(const char* name, std::optional<std::vector<at::Tensor>>& values) {
    values.reset();
    if (in_.contains(name) && !in_.at(name).isNone()) tensors(name, values.emplace());
  }
  bool begin_optional(bool /*present*/, const char* first) const { return in_.contains(first); }

 private:
  const IValue& need(const char* name) const {
    if (!in_.contains(name)) fail(ErrorCode::kMismatch, "the snapshot has no '" + where_ + name + "'");
    return in_.at(name);
  }
  /// On the parameter's device, and if it is of floating point, in its dtype, as Python's load_state_dict does.
  at::Tensor tensor_at(const char* name, const IValue& value) const {
    if (!value.isTensor()) fail(ErrorCode::kMismatch, "'" + where_ + name + "' is no tensor in the snapshot");
    const at::Tensor tensor = value.toTensor().detach();
    return at::isFloatingType(parameter_.scalar_type()) && at::isFloatingType(tensor.scalar_type())
               ? tensor.to(parameter_.device(), parameter_.scalar_type())
               : tensor.to(parameter_.device());
  }

  const StateDict& in_;
  const at::Tensor& parameter_;
  std::string where_;
};

/// The number at the beginning of `text`, and what follows it; nothing if there is none.
std::optional<std::pair<std::size_t, std::string_view>> leading_number(std::string_view text) {
  std::size_t number = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (status != std::errc()) return std::nullopt;
  return std::pair(number, text.substr(static_cast<std::size_t>(end - text.data())));
}

template <typename Options>
class OptimizerAdapter final : public Adapter {
 public:
  using Fields = OptimizerFields<Options>;
  using State = typename Fields::State;

  explicit OptimizerAdapter(Optimizer& optimizer) : optimizer_(optimizer) {}

  StateDict state_dict() override {
    const at::NoGradGuard no_grad;
    IValue states = new_dict(c10::IntType::get());
    c10::impl::GenericList groups(c10::AnyType::get());
    kept_.resize(optimizer_.param_groups().size());
    std::int64_t index = 0;
    for (std::size_t g = 0; g < kept_.size(); ++g) {
      auto& group = optimizer_.param_groups()[g];
      StateDict saved;
      SaveOptions save(saved, kept_[g]);
      Fields::options(save, options_of(group));
      for (const auto& [name, value] : kept_[g]) saved.set(name, value);
      c10::impl::GenericList numbers(c10::IntType::get());
      for (const at::Tensor& parameter : group.params()) {
        if (State* state = state_of(parameter)) {
          IValue saved_state = new_dict(c10::StringType::get());
          SaveState save_state(saved_state.toGenericDict());
          Fields::state(save_state, *state);
          if (!saved_state.toGenericDict().empty()) states.toGenericDict().insert(index, saved_state);
        }
        numbers.push_back(index++);
      }
      saved.set("params", numbers);
      groups.push_back(saved);
    }
    return {{"state", states}, {"param_groups", groups}};
  }

  /// Everything new is made before anything old goes: a failure leaves the optimizer as it was.
  void load_state_dict(const StateDict& state) override {
    const at::NoGradGuard no_grad;
    const std::vector<IValue> groups = detail::as_list(state.at("param_groups"), "param_groups");
    auto& own_groups = optimizer_.param_groups();
    check_count(groups.size(), own_groups.size(), "parameter groups");
    std::vector<std::unique_ptr<OptimizerOptions>> options;
    std::vector<StateDict> kept(groups.size());
    std::vector<std::pair<at::Tensor, std::unique_ptr<OptimizerParamState>>> states;
    const IValue& saved_states = state.at("state");
    if (!saved_states.isGenericDict()) fail(ErrorCode::kMismatch, "'state' is no dict in the snapshot");
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const StateDict group = detail::as_state_dict(groups[g], "param_groups");
      auto made = std::make_unique<Options>(options_of(own_groups[g]));
      LoadOptions load(group, kept[g]);
      Fields::options(load, *made);
      options.push_back(std::move(made));
      const auto numbers = group.get<std::vector<std::int64_t>>("params");
      check_count(numbers.size(), own_groups[g].params().size(), "parameters in group " + std::to_string(g));
      for (std::size_t p = 0; p < numbers.size(); ++p) {
        load_parameter(saved_states.toGenericDict(), numbers[p], own_groups[g].params()[p], states);
      }
    }

    auto& own_states = optimizer_.state();
    if (!Fields::kStateIsEager) own_states.clear();
    for (auto& [parameter, made] : states) own_states[parameter.unsafeGetTensorImpl()] = std::move(made);
    for (std::size_t g = 0; g < groups.size(); ++g) {
      // Not set_options: a reference that the program holds stays the group's.
      options_of(own_groups[g]) = static_cast<const Options&>(*options[g]);
    }
    kept_ = std::move(kept);
  }

  /// Counts of groups and parameters, and shapes of what belongs to a parameter.
  void check(const SavedKey& saved, bool /*strict*/) override {
    std::vector<const at::Tensor*> parameters;
    auto& groups = optimizer_.param_groups();
    std::vector<std::size_t> counts(groups.size());
    std::size_t saved_groups = 0;
    for (const auto& [path, entry] : saved.entries) {
      constexpr std::string_view kGroups = "param_groups/";
      if (!path.starts_with(kGroups)) continue;
      const auto group = leading_number(path.substr(kGroups.size()));
      if (!group) continue;
      if (group->second.empty()) ++saved_groups;
      if (group->second.starts_with("/params/") && group->first < counts.size()) ++counts[group->first];
    }
    const std::string where = "'" + saved.key + "'";
    check_count(saved_groups, groups.size(), "parameter groups", where);
    for (std::size_t g = 0; g < groups.size(); ++g) {
      check_count(counts[g], groups[g].params().size(), "parameters in group " + std::to_string(g), where);
      for (const at::Tensor& parameter : groups[g].params()) parameters.push_back(&parameter);
    }
    for (const auto& [path, entry] : saved.entries) {
      if (!path.starts_with("state/")) continue;
      const auto number = leading_number(path.substr(6));
      const Dims* shape = saved_shape(*entry);
      // The numbers are the places in the groups, as every version of Python's state_dict() makes them.
      if (!number || shape == nullptr || number->first >= parameters.size() ||
          !has_shape_of_parameter(number->second)) {
        continue;
      }
      if (parameters[number->first]->sizes() != at::IntArrayRef(*shape)) {
        fail(ErrorCode::kMismatch, "'" + saved.key + "/" + std::string(path) + "' has another shape than parameter " +
                                       std::to_string(number->first) +
                                       " of the optimizer here, so its parameters are others or come in another order; "
                                       "nothing was changed");
      }
    }
  }

 private:
  static Options& options_of(torch::optim::OptimizerParamGroup& group) {
    return static_cast<Options&>(group.options());
  }

  State* state_of(const at::Tensor& parameter) {
    const auto found = optimizer_.state().find(parameter.unsafeGetTensorImpl());
    return found == optimizer_.state().end() ? nullptr : static_cast<State*>(found->second.get());
  }

  static void load_parameter(const c10::impl::GenericDict& saved, std::int64_t number, const at::Tensor& parameter,
                             std::vector<std::pair<at::Tensor, std::unique_ptr<OptimizerParamState>>>& states) {
    const auto found = saved.find(number);
    if (found == saved.end()) return;
    const std::string where = "state/" + std::to_string(number) + "/";
    const StateDict values = detail::as_state_dict(found->value(), where);
    auto made = std::make_unique<State>();
    LoadState load(values, parameter, where);
    Fields::state(load, *made);
    states.emplace_back(parameter, std::move(made));
  }

  static void check_count(std::size_t saved, std::size_t here, const std::string& what, const std::string& where = "") {
    if (saved == here) return;
    fail(ErrorCode::kMismatch, (where.empty() ? "" : where + " ") + "has " + std::to_string(saved) + " " + what +
                                   " in the snapshot, here are " + std::to_string(here));
  }

  static bool has_shape_of_parameter(std::string_view name) {
    for (const std::string_view known :
         {"/exp_avg", "/exp_avg_sq", "/max_exp_avg_sq", "/momentum_buffer", "/square_avg", "/grad_avg", "/sum"}) {
      if (name == known) return true;
    }
    return false;
  }

  Optimizer& optimizer_;
  std::vector<StateDict> kept_;  ///< per group, what a restored snapshot has and only Python knows
};

template <typename Known, typename Options>
std::shared_ptr<Stateful> try_wrap(Optimizer& optimizer) {
  if (dynamic_cast<Known*>(&optimizer) == nullptr) return nullptr;
  return std::make_shared<OptimizerAdapter<Options>>(optimizer);
}

}  // namespace

std::shared_ptr<Stateful> detail::wrap_optimizer(Optimizer& optimizer) {
  using namespace torch::optim;  // NOLINT(google-build-using-namespace)
  std::shared_ptr<Stateful> made = try_wrap<Adam, AdamOptions>(optimizer);
  if (!made) made = try_wrap<AdamW, AdamWOptions>(optimizer);
  if (!made) made = try_wrap<SGD, SGDOptions>(optimizer);
  if (!made) made = try_wrap<RMSprop, RMSpropOptions>(optimizer);
  if (!made) made = try_wrap<Adagrad, AdagradOptions>(optimizer);
  if (!made) made = try_wrap<LBFGS, LBFGSOptions>(optimizer);
  if (!made) {
    throw Error(ErrorCode::kUnsupported,
                "an optimizer class that libtorch does not have: give it state_dict() and load_state_dict()");
  }
  return made;
}

}  // namespace torchsnapshot::libtorch
