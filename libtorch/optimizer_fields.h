// What each optimizer of torch::optim keeps, by Python's names and in Python's order. One description serves saving and
// loading: a visitor gets each field as a reference that it reads or sets.
//
// An option visitor has operator()(name, field) for what both languages have, and python_only(name, default, meaning)
// for what only Python has. A state visitor has number(), tensor() (of the parameter's shape), free_tensor() (of any
// shape) and tensors().
#pragma once

#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <cstdint>
#include <optional>
#include <type_traits>

namespace torchsnapshot::libtorch {

/// What it means when an option that only Python has is not at its default.
enum class Meaning : std::uint8_t {
  kSpeed,      ///< how the same numbers are computed: it is kept for Python, and does nothing here
  kAlgorithm,  ///< other numbers: C++ can't go on with it
};

template <typename Options>
struct OptimizerFields;

namespace detail {

template <typename Visit, typename Options>
void visit_adam_options(Visit& visit, Options& options, bool decoupled) {
  visit("lr", options.lr());
  visit("betas", options.betas());
  visit("eps", options.eps());
  visit("weight_decay", options.weight_decay());
  visit("amsgrad", options.amsgrad());
  visit.python_only("maximize", false, Meaning::kAlgorithm);
  visit.python_only("foreach", {}, Meaning::kSpeed);
  visit.python_only("capturable", false, Meaning::kSpeed);
  visit.python_only("differentiable", false, Meaning::kSpeed);
  visit.python_only("fused", {}, Meaning::kSpeed);
  // Python's AdamW sets it itself; in an Adam it makes an AdamW, unless there is no decay.
  visit.python_only("decoupled_weight_decay", decoupled,
                    decoupled || options.weight_decay() == 0 ? Meaning::kSpeed : Meaning::kAlgorithm);
}

template <typename Visit, typename State>
void visit_adam_state(Visit& visit, State& state) {
  visit.step(state.step());
  visit.tensor("exp_avg", state.exp_avg());
  visit.tensor("exp_avg_sq", state.exp_avg_sq());
  visit.optional_tensor("max_exp_avg_sq", state.max_exp_avg_sq());
}

}  // namespace detail

template <>
struct OptimizerFields<torch::optim::AdamOptions> {
  using State = torch::optim::AdamParamState;
  static constexpr bool kStateIsEager = false;
  template <typename Visit>
  static void options(Visit& visit, torch::optim::AdamOptions& options) {
    detail::visit_adam_options(visit, options, false);
  }
  template <typename Visit>
  static void state(Visit& visit, State& state) {
    detail::visit_adam_state(visit, state);
  }
};

template <>
struct OptimizerFields<torch::optim::AdamWOptions> {
  using State = torch::optim::AdamWParamState;
  static constexpr bool kStateIsEager = false;
  template <typename Visit>
  static void options(Visit& visit, torch::optim::AdamWOptions& options) {
    detail::visit_adam_options(visit, options, true);
  }
  template <typename Visit>
  static void state(Visit& visit, State& state) {
    detail::visit_adam_state(visit, state);
  }
};

template <>
struct OptimizerFields<torch::optim::SGDOptions> {
  using State = torch::optim::SGDParamState;
  static constexpr bool kStateIsEager = false;
  template <typename Visit>
  static void options(Visit& visit, torch::optim::SGDOptions& options) {
    visit("lr", options.lr());
    visit("momentum", options.momentum());
    visit("dampening", options.dampening());
    visit("weight_decay", options.weight_decay());
    visit("nesterov", options.nesterov());
    visit.python_only("maximize", false, Meaning::kAlgorithm);
    visit.python_only("foreach", {}, Meaning::kSpeed);
    visit.python_only("differentiable", false, Meaning::kSpeed);
    visit.python_only("fused", {}, Meaning::kSpeed);
  }
  template <typename Visit>
  static void state(Visit& visit, State& state) {
    visit.optional_tensor("momentum_buffer", state.momentum_buffer());
  }
};

template <>
struct OptimizerFields<torch::optim::RMSpropOptions> {
  using State = torch::optim::RMSpropParamState;
  static constexpr bool kStateIsEager = false;
  template <typename Visit>
  static void options(Visit& visit, torch::optim::RMSpropOptions& options) {
    visit("lr", options.lr());
    visit("momentum", options.momentum());
    visit("alpha", options.alpha());
    visit("eps", options.eps());
    visit("centered", options.centered());
    visit("weight_decay", options.weight_decay());
    visit.python_only("capturable", false, Meaning::kSpeed);
    visit.python_only("foreach", {}, Meaning::kSpeed);
    visit.python_only("maximize", false, Meaning::kAlgorithm);
    visit.python_only("differentiable", false, Meaning::kSpeed);
  }
  template <typename Visit>
  static void state(Visit& visit, State& state) {
    visit.step(state.step());
    visit.tensor("square_avg", state.square_avg());
    visit.optional_tensor("momentum_buffer", state.momentum_buffer());
    visit.optional_tensor("grad_avg", state.grad_avg());
  }
};

template <>
struct OptimizerFields<torch::optim::AdagradOptions> {
  using State = torch::optim::AdagradParamState;
  static constexpr bool kStateIsEager = true;  // made by the optimizer's constructor, and never later
  template <typename Visit>
  static void options(Visit& visit, torch::optim::AdagradOptions& options) {
    visit("lr", options.lr());
    visit("lr_decay", options.lr_decay());
    visit("eps", options.eps());
    visit("weight_decay", options.weight_decay());
    visit("initial_accumulator_value", options.initial_accumulator_value());
    visit.python_only("foreach", {}, Meaning::kSpeed);
    visit.python_only("maximize", false, Meaning::kAlgorithm);
    visit.python_only("differentiable", false, Meaning::kSpeed);
    visit.python_only("fused", {}, Meaning::kSpeed);
  }
  template <typename Visit>
  static void state(Visit& visit, State& state) {
    visit.step(state.step());
    visit.tensor("sum", state.sum());
  }
};

template <>
struct OptimizerFields<torch::optim::LBFGSOptions> {
  using State = torch::optim::LBFGSParamState;
  static constexpr bool kStateIsEager = false;
  template <typename Visit>
  static void options(Visit& visit, torch::optim::LBFGSOptions& options) {
    visit("lr", options.lr());
    visit("max_iter", options.max_iter());
    visit("max_eval", options.max_eval());
    visit("tolerance_grad", options.tolerance_grad());
    visit("tolerance_change", options.tolerance_change());
    visit("history_size", options.history_size());
    visit("line_search_fn", options.line_search_fn());
  }
  /// One for all parameters, kept with the first. Before the first iteration there are only the two counts.
  template <typename Visit>
  static void state(Visit& visit, State& state) {
    visit.number("func_evals", state.func_evals());
    visit.number("n_iter", state.n_iter());
    if (!visit.begin_optional(state.n_iter() > 0, "d")) return;
    visit.flat_tensor("d", state.d());
    visit.number("t", state.t());
    visit.tensors("old_dirs", state.old_dirs());
    visit.tensors("old_stps", state.old_stps());
    visit.tensors("ro", state.ro());
    visit.flat_tensor("H_diag", state.H_diag());
    visit.flat_tensor("prev_flat_grad", state.prev_flat_grad());
    visit.number("prev_loss", state.prev_loss());
    visit.optional_tensors("al", state.al());
  }
};

}  // namespace torchsnapshot::libtorch
