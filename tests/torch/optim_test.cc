// Optimizers and schedulers: after a restore they go on as if nothing had happened.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <vector>

#include "tests/torch/support.h"
#include "torchsnapshot/torch.h"

namespace torchsnapshot::libtorch {
namespace {

using namespace torch::optim;

struct Trainer {
  using Make = std::function<std::unique_ptr<Optimizer>(const std::vector<torch::Tensor>&)>;
  explicit Trainer(const Make& make) : optimizer(make(model->parameters())) {}

  std::vector<double> train(int steps) {
    std::vector<double> losses;
    for (int step = 0; step < steps; ++step) {
      const torch::Tensor loss = optimizer->step([&] {
        optimizer->zero_grad();
        torch::Tensor current = torch::mse_loss(torch::tanh(model(x)), y);
        current.backward();
        return current;
      });
      losses.push_back(loss.item<double>());
    }
    return losses;
  }

  torch::nn::Linear model{4, 3};
  std::unique_ptr<Optimizer> optimizer;
  torch::Tensor x = torch::arange(32, torch::kFloat).reshape({8, 4}) / 16 - 1;
  torch::Tensor y = torch::ones({8, 3}) / 3;
};

struct Case {
  std::string name;
  Trainer::Make saved;
  Trainer::Make fresh;  ///< with other options
};

template <typename Optim, typename Options>
Case make_case(const std::string& name, const Options& saved, const Options& fresh) {
  const auto maker = [](const Options& options) {
    return [options](const std::vector<torch::Tensor>& parameters) {
      return std::make_unique<Optim>(parameters, options);
    };
  };
  return {name, maker(saved), maker(fresh)};
}

class OptimizerTest : public testing::TestWithParam<Case> {};

TEST_P(OptimizerTest, GoesOnAfterARestoreIntoAFreshOne) {
  const TempFolder folder;
  Trainer trained(GetParam().saved);
  trained.train(3);
  const Snapshot snapshot = Snapshot::take(folder.path("s"), {{"model", trained.model}, {"optim", trained.optimizer}});
  const StateDict saved = snapshot.read_state("optim");

  Trainer fresh(GetParam().fresh);
  const AppState app{{"model", fresh.model}, {"optim", fresh.optimizer}};
  RestoreReport report = snapshot.restore(app);
  EXPECT_TRUE(report.missing.empty() && report.mismatched.empty());
  const std::vector<double> losses = trained.train(10);
  EXPECT_EQ(losses, fresh.train(10));

  // And back again, now that there is a state to fill in place.
  report = snapshot.restore(app);
  EXPECT_TRUE(report.missing.empty());
  EXPECT_EQ(losses, fresh.train(10));
  report = snapshot.restore(app);
  Snapshot::take(folder.path("again"), app);
  expect_same(saved, Snapshot(folder.path("again")).read_state("optim"));
}

TEST_P(OptimizerTest, OneThatHasNotSteppedGoesOn) {
  const TempFolder folder;
  Trainer trained(GetParam().saved);
  Snapshot::take(folder.path("s"), {{"model", trained.model}, {"optim", trained.optimizer}});
  Trainer other(GetParam().fresh);
  other.train(2);
  Snapshot(folder.path("s")).restore({{"model", other.model}, {"optim", other.optimizer}});
  EXPECT_EQ(trained.train(5), other.train(5));
}

INSTANTIATE_TEST_SUITE_P(
    All, OptimizerTest,
    testing::Values(
        make_case<Adam>("Adam", AdamOptions(0.01).betas({0.8, 0.95}).weight_decay(0.1), AdamOptions()),
        make_case<Adam>("AdamAmsgrad", AdamOptions(0.01).amsgrad(true), AdamOptions()),
        make_case<AdamW>("AdamW", AdamWOptions(0.02).eps(1e-6), AdamWOptions()),
        make_case<SGD>("Sgd", SGDOptions(0.1), SGDOptions(0.5).momentum(0.5)),
        make_case<SGD>("SgdMomentum", SGDOptions(0.1).momentum(0.9).dampening(0.1), SGDOptions(0.5)),
        make_case<SGD>("SgdNesterov", SGDOptions(0.1).momentum(0.9).nesterov(true), SGDOptions(0.5)),
        make_case<RMSprop>("RMSprop", RMSpropOptions(0.01).alpha(0.9), RMSpropOptions()),
        make_case<RMSprop>("RMSpropAll", RMSpropOptions(0.01).centered(true).momentum(0.5), RMSpropOptions()),
        make_case<Adagrad>("Adagrad", AdagradOptions(0.1).lr_decay(0.01).initial_accumulator_value(0.1),
                           AdagradOptions()),
        make_case<LBFGS>("Lbfgs", LBFGSOptions(0.5).max_iter(3).history_size(5), LBFGSOptions()),
        make_case<LBFGS>("LbfgsWolfe", LBFGSOptions(1).max_iter(4).line_search_fn("strong_wolfe"), LBFGSOptions())),
    [](const auto& test) { return test.param.name; });

// --- several parameter groups, each with options of its own, of which none is at its default

/// Two layers in a group each; of the second only the weight gets gradients, so that its bias never has a state.
struct GroupTrainer {
  using Groups = std::vector<OptimizerParamGroup>;

  template <typename Optim, typename Options>
  static GroupTrainer with(const Options& first, const Options& second, const Options& defaults) {
    GroupTrainer made;
    Groups groups;
    groups.emplace_back(made.body->parameters(), std::make_unique<Options>(first));
    groups.emplace_back(made.head->parameters(), std::make_unique<Options>(second));
    made.optimizer = std::make_unique<Optim>(std::move(groups), defaults);
    return made;
  }

  std::vector<double> train(int steps) {
    std::vector<double> losses;
    for (int step = 0; step < steps; ++step) {
      const torch::Tensor loss = optimizer->step([&] {
        optimizer->zero_grad();
        torch::Tensor current = torch::mse_loss(torch::matmul(torch::tanh(body(torch::ones({5, 4}))), head->weight.t()),
                                                torch::ones({5, 2}));
        current.backward();
        return current;
      });
      losses.push_back(loss.item<double>());
    }
    return losses;
  }

  [[nodiscard]] AppState app() { return {{"body", body}, {"head", head}, {"optim", optimizer}}; }

  torch::nn::Linear body{4, 3};
  torch::nn::Linear head{3, 2};
  std::unique_ptr<Optimizer> optimizer;
};

template <typename Optim, typename Options>
void expect_groups_go_on(const Options& first, const Options& second) {
  const Options other(0.7);
  SCOPED_TRACE(typeid(Optim).name());
  ASSERT_FALSE(first == other || second == other || first == second);
  const TempFolder folder;
  GroupTrainer trained = GroupTrainer::with<Optim>(first, second, other);
  trained.train(3);
  const Snapshot snapshot = Snapshot::take(folder.path("s"), trained.app());
  GroupTrainer fresh = GroupTrainer::with<Optim>(other, other, other);
  EXPECT_TRUE(snapshot.restore(fresh.app()).missing.empty());
  // libtorch's own comparison, which knows every option. That of RMSprop finds even the groups of `trained` others than
  // they were given; the losses below depend on all of its options.
  if (!std::is_same_v<Optim, RMSprop>) {
    const auto options_at = [&fresh](std::size_t group) {
      return static_cast<const Options&>(fresh.optimizer->param_groups()[group].options());
    };
    EXPECT_TRUE(options_at(0) == first);
    EXPECT_TRUE(options_at(1) == second);
  }
  EXPECT_EQ(trained.train(10), fresh.train(10));
  // Where a state is made by the first step that needs it, a parameter without gradients has none.
  if (!std::is_same_v<Optim, Adagrad>) {
    EXPECT_LT(fresh.optimizer->state().size(), 4U);
  }
}

TEST(ParameterGroups, EveryOptimizerGoesOnWithTheOptionsOfEach) {
  expect_groups_go_on<Adam>(AdamOptions(0.01).betas({0.8, 0.95}).eps(1e-6).weight_decay(0.1).amsgrad(true),
                            AdamOptions(0.02).betas({0.7, 0.9}).eps(1e-5).weight_decay(0.2));
  expect_groups_go_on<AdamW>(AdamWOptions(0.01).betas({0.8, 0.95}).eps(1e-6).weight_decay(0.1),
                             AdamWOptions(0.02).betas({0.7, 0.9}).eps(1e-5).weight_decay(0.2).amsgrad(true));
  expect_groups_go_on<SGD>(SGDOptions(0.1).momentum(0.9).dampening(0.1).weight_decay(0.01),
                           SGDOptions(0.2).momentum(0.8).weight_decay(0.02).nesterov(true));
  expect_groups_go_on<RMSprop>(
      RMSpropOptions(0.01).alpha(0.9).eps(1e-6).weight_decay(0.01).momentum(0.5).centered(true),
      RMSpropOptions(0.02).alpha(0.8).eps(1e-5).weight_decay(0.02));
  expect_groups_go_on<Adagrad>(AdagradOptions(0.1).lr_decay(0.01).weight_decay(0.01).eps(1e-6),
                               AdagradOptions(0.2).lr_decay(0.02).weight_decay(0.02).initial_accumulator_value(0.1));
}

/// LBFGS has one group.
TEST(ParameterGroups, EveryOptionOfLbfgs) {
  const TempFolder folder;
  const LBFGSOptions options = LBFGSOptions(0.5)
                                   .max_iter(3)
                                   .max_eval(7)
                                   .tolerance_grad(1e-8)
                                   .tolerance_change(1e-10)
                                   .history_size(5)
                                   .line_search_fn("strong_wolfe");
  Trainer trained([&](const auto& parameters) { return std::make_unique<LBFGS>(parameters, options); });
  trained.train(2);
  Snapshot::take(folder.path("s"), {{"model", trained.model}, {"optim", trained.optimizer}});
  Trainer fresh([](const auto& parameters) { return std::make_unique<LBFGS>(parameters); });
  Snapshot(folder.path("s")).restore({{"model", fresh.model}, {"optim", fresh.optimizer}});
  EXPECT_TRUE(static_cast<LBFGSOptions&>(fresh.optimizer->param_groups()[0].options()) == options);
  EXPECT_EQ(trained.train(10), fresh.train(10));
}

/// What Python would have saved for an SGD over `sizes` parameters per group, with one more option.
StateDict python_sgd(const std::vector<std::int64_t>& sizes, const std::string& option, const c10::IValue& value) {
  c10::impl::GenericList groups(c10::AnyType::get());
  std::int64_t next = 0;
  for (const std::int64_t size : sizes) {
    std::vector<std::int64_t> params;
    for (std::int64_t i = 0; i < size; ++i) params.push_back(next++);
    StateDict group{{"lr", torch::tensor(0.25)}, {"momentum", 0},     {"dampening", 0},  {"weight_decay", 1},
                    {"nesterov", false},         {"maximize", false}, {"params", params}};
    group.set(option, value);
    groups.push_back(group);
  }
  return {{"state", c10::impl::GenericDict(c10::IntType::get(), c10::AnyType::get())}, {"param_groups", groups}};
}

Trainer make_sgd() {
  return Trainer([](const auto& parameters) { return std::make_unique<SGD>(parameters, SGDOptions(0.1)); });
}

TEST(OptimizerFromPython, NumbersOfEveryKindAndOptionsOfPythonAlone) {
  const TempFolder folder;
  StateDict saved = python_sgd({2}, "initial_lr", 0.5);
  Snapshot::take(folder.path("s"), {{"optim", saved}});
  Trainer trainer = make_sgd();
  const AppState app{{"optim", trainer.optimizer}};
  Snapshot(folder.path("s")).restore(app);
  const auto& options = static_cast<SGDOptions&>(trainer.optimizer->param_groups()[0].options());
  EXPECT_EQ(options.lr(), 0.25);
  EXPECT_EQ(options.weight_decay(), 1.0);
  Snapshot::take(folder.path("again"), app);
  const StateDict again = Snapshot(folder.path("again")).read_state("optim");
  const StateDict group = detail::as_state_dict(detail::as_list(again.at("param_groups"), "")[0], "");
  EXPECT_EQ(group.get<double>("initial_lr"), 0.5) << "it is kept for Python";
  EXPECT_TRUE(group.at("foreach").isNone());
  EXPECT_FALSE(group.get<bool>("maximize"));
}

TEST(OptimizerFromPython, WhatCannotBeGoneOnWithIsNamed) {
  const TempFolder folder;
  const auto restore = [&folder](StateDict saved) {
    Snapshot::take(folder.path("s"), {{"optim", saved}});
    Trainer trainer = make_sgd();
    Snapshot(folder.path("s")).restore({{"optim", trainer.optimizer}});
  };
  expect_error(ErrorCode::kUnsupported, "'maximize'", [&] { restore(python_sgd({2}, "maximize", true)); });
  expect_error(ErrorCode::kMismatch, "'optim' has 2 parameter groups", [&] { restore(python_sgd({1, 1}, "x", 1)); });
  expect_error(ErrorCode::kMismatch, "'optim' has 3 parameters in group 0", [&] { restore(python_sgd({3}, "x", 1)); });
  StateDict shape = python_sgd({2}, "momentum", 0.9);
  c10::impl::GenericDict states(c10::IntType::get(), c10::AnyType::get());
  states.insert(0, StateDict{{"momentum_buffer", torch::ones({5})}});
  shape["state"] = states;
  expect_error(ErrorCode::kMismatch, "'optim/state/0/momentum_buffer' has another shape", [&] { restore(shape); });
  StateDict text = python_sgd({2}, "lr", "fast");
  expect_error(ErrorCode::kMismatch, "'lr' is a String", [&] { restore(text); });
}

TEST(OptimizerFromPython, AFailedRestoreLeavesTheOptimizer) {
  const TempFolder folder;
  Trainer trainer([](const auto& parameters) { return std::make_unique<Adam>(parameters, AdamOptions(0.1)); });
  trainer.train(2);
  StateDict saved{{"state", c10::IValue()}, {"param_groups", c10::IValue()}};
  Snapshot::take(folder.path("s"), {{"optim", trainer.optimizer}});
  saved = Snapshot(folder.path("s")).read_state("optim");
  ASSERT_EQ(saved.at("state").toGenericDict().at(1).toGenericDict().erase("exp_avg"), 1U);
  Snapshot::take(folder.path("bad"), {{"optim", saved}});
  expect_error(ErrorCode::kMismatch, "'state/1/exp_avg'", [&] {
    Snapshot(folder.path("bad")).restore({{"optim", trainer.optimizer}});
  });
  EXPECT_EQ(trainer.optimizer->state().size(), 2U);
  trainer.train(1);
}

/// An optimizer of the user's own.
struct Own final : Optimizer {
  explicit Own(std::vector<torch::Tensor> parameters)
      : Optimizer(std::move(parameters), std::make_unique<SGDOptions>(0.1)) {}
  torch::Tensor step(LossClosure /*closure*/) override { return {}; }
};

TEST(OptimizerTest, AnUnknownClassIsRefused) {
  Own own({torch::ones({1})});
  expect_error(ErrorCode::kUnsupported, "give it state_dict()", [&] { AppState({{"optim", own}}); });
}

double rate(const Trainer& trainer) {
  return trainer.optimizer->param_groups()[0].options().get_lr();
}

TEST(Scheduler, StepLrGoesOn) {
  const TempFolder folder;
  for (int before = 0; before < 8; ++before) {
    Trainer trained = make_sgd();
    StepLR scheduler(*trained.optimizer, 3, 0.5);
    for (int i = 0; i < before; ++i) scheduler.step();
    Snapshot::take(folder.path("s"), {{"optim", trained.optimizer}, {"sched", scheduler}});
    Trainer other = make_sgd();
    StepLR restored(*other.optimizer, 3, 0.5);
    Snapshot(folder.path("s")).restore({{"optim", other.optimizer}, {"sched", restored}});
    for (int i = 0; i < 8; ++i) {
      EXPECT_EQ(rate(trained), rate(other));
      scheduler.step();
      restored.step();
    }
    const StateDict state = Snapshot(folder.path("s")).read_state("sched");
    EXPECT_DOUBLE_EQ(state.get<std::vector<double>>("base_lrs").at(0), 0.1);
  }
  Trainer other = make_sgd();
  StepLR another(*other.optimizer, 4, 0.5);
  expect_error(ErrorCode::kMismatch, "'sched/step_size' is 3", [&] {
    Snapshot(folder.path("s")).restore({{"sched", another}});
  });
}

std::vector<double> rates(const GroupTrainer& trainer) {
  std::vector<double> all;
  for (const auto& group : trainer.optimizer->param_groups()) all.push_back(group.options().get_lr());
  return all;
}

TEST(Scheduler, EachGroupKeepsItsRate) {
  const TempFolder folder;
  const auto make = [](double first, double second) {
    return GroupTrainer::with<SGD>(SGDOptions(first), SGDOptions(second), SGDOptions(1.0));
  };
  GroupTrainer trained = make(0.1, 0.4);
  StepLR step(*trained.optimizer, 2, 0.5);
  ReduceLROnPlateauScheduler plateau(*trained.optimizer, ReduceLROnPlateauScheduler::min, 0.5F, 1, 1e-4,
                                     ReduceLROnPlateauScheduler::abs, 0, {1e-3F, 0.2F});
  const auto go_on = [](StepLR& by_step, ReduceLROnPlateauScheduler& by_metric) {
    by_step.step();
    by_metric.step(1.0F);
  };
  for (int i = 0; i < 3; ++i) go_on(step, plateau);
  Snapshot::take(folder.path("s"), {{"optim", trained.optimizer}, {"step", step}, {"plateau", plateau}});
  GroupTrainer other = make(1, 1);
  StepLR other_step(*other.optimizer, 2, 0.5);
  ReduceLROnPlateauScheduler other_plateau(*other.optimizer);
  Snapshot(folder.path("s")).restore({{"optim", other.optimizer}, {"step", other_step}, {"plateau", other_plateau}});
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(rates(trained), rates(other)) << i;
    go_on(step, plateau);
    go_on(other_step, other_plateau);
  }
  EXPECT_LT(rates(trained)[0], 0.01);
  EXPECT_NE(rates(trained)[0], rates(trained)[1]);
}

/// A scheduler of the user's own, whose rates depend on the count of steps alone.
struct Warmup final : LRScheduler {
  using LRScheduler::LRScheduler;
  std::vector<double> get_lrs() override {
    return std::vector<double>(get_current_lrs().size(), 0.1 * static_cast<double>(step_count_ + 1));
  }
};

TEST(Scheduler, OneOfTheUsersOwnGoesOnByItsCount) {
  const TempFolder folder;
  Trainer trained = make_sgd();
  Warmup scheduler(*trained.optimizer);
  for (int i = 0; i < 3; ++i) scheduler.step();
  Snapshot::take(folder.path("s"), {{"optim", trained.optimizer}, {"sched", scheduler}});
  Trainer other = make_sgd();
  Warmup restored(*other.optimizer);
  Snapshot(folder.path("s")).restore({{"optim", other.optimizer}, {"sched", restored}});
  EXPECT_DOUBLE_EQ(rate(other), 0.3);
  restored.step();
  EXPECT_DOUBLE_EQ(rate(other), 0.4);
}

TEST(Scheduler, PlateauGoesOn) {
  const TempFolder folder;
  Trainer trained = make_sgd();
  ReduceLROnPlateauScheduler scheduler(*trained.optimizer, ReduceLROnPlateauScheduler::max, 0.3F, 2, 0.01,
                                       ReduceLROnPlateauScheduler::rel, 1, {1e-3F});
  for (const float metric : {1.0F, 2.0F, 2.0F, 2.0F}) scheduler.step(metric);
  Snapshot::take(folder.path("s"), {{"optim", trained.optimizer}, {"sched", scheduler}});
  Trainer other = make_sgd();
  ReduceLROnPlateauScheduler restored(*other.optimizer);
  Snapshot(folder.path("s")).restore({{"optim", other.optimizer}, {"sched", restored}});
  for (int i = 0; i < 12; ++i) {
    scheduler.step(1.5F);
    restored.step(1.5F);
    EXPECT_EQ(rate(trained), rate(other)) << i;
  }
  EXPECT_LT(rate(trained), 0.1);
  const StateDict state = Snapshot(folder.path("s")).read_state("sched");
  EXPECT_EQ(state.get<double>("factor"), 0.3) << "as Python would write it";
  EXPECT_EQ(state.get<std::string>("mode"), "max");
}

}  // namespace
}  // namespace torchsnapshot::libtorch
