// Schedulers of libtorch as Python's state_dict() of the class of the same name.
//
// libtorch gives no access to their state. The members are reached by explicit instantiation, to which the language's
// access rules do not apply: no cast and no guess at a layout, and a member that a new version renames does not
// compile.

#include <torch/optim/schedulers/step_lr.h>

#include <charconv>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "libtorch/adapter.h"
#include "manifest/primitive.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot::libtorch {
namespace members {

using torch::optim::LRScheduler;
using torch::optim::StepLR;
using Plateau = torch::optim::ReduceLROnPlateauScheduler;

template <typename Tag, typename Tag::Type kMember>
struct Expose {
  friend typename Tag::Type pointer(Tag /*tag*/) { return kMember; }
};

// NAME{} stands for &CLASS::MEMBER, which is a TYPE: member(object, NAME{}).
#define TORCHSNAPSHOT_EXPOSE(NAME, TYPE, ...) \
  struct NAME {                               \
    using Type = TYPE;                        \
    friend Type pointer(NAME);                \
  };                                          \
  template struct Expose<NAME, __VA_ARGS__>

using CurrentLrsFn = std::vector<double> (LRScheduler::*)() const;
TORCHSNAPSHOT_EXPOSE(StepCount, unsigned LRScheduler::*, &LRScheduler::step_count_);
TORCHSNAPSHOT_EXPOSE(CurrentLrs, CurrentLrsFn, &LRScheduler::get_current_lrs);
TORCHSNAPSHOT_EXPOSE(StepSize, const unsigned StepLR::*, &StepLR::step_size_);
TORCHSNAPSHOT_EXPOSE(Gamma, const double StepLR::*, &StepLR::gamma_);
TORCHSNAPSHOT_EXPOSE(Mode, Plateau::SchedulerMode Plateau::*, &Plateau::mode);
TORCHSNAPSHOT_EXPOSE(ModeWorse, float Plateau::*, &Plateau::mode_worse);
TORCHSNAPSHOT_EXPOSE(Factor, float Plateau::*, &Plateau::factor);
TORCHSNAPSHOT_EXPOSE(Patience, int Plateau::*, &Plateau::patience);
TORCHSNAPSHOT_EXPOSE(Threshold, double Plateau::*, &Plateau::threshold);
TORCHSNAPSHOT_EXPOSE(ThresholdMode, Plateau::ThresholdMode Plateau::*, &Plateau::threshold_mode);
TORCHSNAPSHOT_EXPOSE(Cooldown, int Plateau::*, &Plateau::cooldown);
TORCHSNAPSHOT_EXPOSE(CooldownCounter, int Plateau::*, &Plateau::cooldown_counter);
TORCHSNAPSHOT_EXPOSE(MinLrs, std::vector<float> Plateau::*, &Plateau::min_lrs);
TORCHSNAPSHOT_EXPOSE(Eps, double Plateau::*, &Plateau::eps);
TORCHSNAPSHOT_EXPOSE(Best, float Plateau::*, &Plateau::best);
TORCHSNAPSHOT_EXPOSE(LastEpoch, int Plateau::*, &Plateau::last_epoch);
TORCHSNAPSHOT_EXPOSE(BadEpochs, int Plateau::*, &Plateau::num_bad_epochs);

#undef TORCHSNAPSHOT_EXPOSE

template <typename Object, typename Tag>
auto& member(Object& object, Tag tag) {
  return object.*pointer(tag);
}

}  // namespace members

namespace {

using members::member;
using torch::optim::LRScheduler;
using torch::optim::ReduceLROnPlateauScheduler;
using torch::optim::StepLR;

/// The double that is written like the float: 0.1F becomes 0.1, as Python has it, and comes back as 0.1F.
double to_double(float value) {
  if (!std::isfinite(value)) return value;
  char text[32];
  const auto written = std::to_chars(text, text + sizeof text, value);
  double result = value;
  std::from_chars(text, written.ptr, result);
  return result;
}

c10::IValue list_of(const std::vector<double>& numbers) {
  c10::List<double> list;
  for (const double number : numbers) list.push_back(number);
  return list;
}

/// libtorch counts the calls of step(), and lowers the rate in the call after a multiple of step_size; Python lowers it
/// in the call that makes last_epoch a multiple, which starts at 0 in the constructor. So a count of c is what Python
/// has with last_epoch = c - 1, its _step_count = c: from there on both lower the rate in the same calls.
class LRSchedulerAdapter final : public Adapter {
 public:
  explicit LRSchedulerAdapter(LRScheduler& scheduler)
      : scheduler_(scheduler), step_lr_(dynamic_cast<StepLR*>(&scheduler)) {}

  StateDict state_dict() override {
    const auto count = static_cast<std::int64_t>(member(scheduler_, members::StepCount{}));
    const std::vector<double> rates = (scheduler_.*pointer(members::CurrentLrs{}))();
    StateDict state;
    std::vector<double> base = rates;
    if (step_lr_ != nullptr) {
      const std::int64_t size = member(*step_lr_, members::StepSize{});
      const double gamma = member(*step_lr_, members::Gamma{});
      const auto times = count > 0 && size > 0 ? static_cast<double>((count - 1) / size) : 0.0;
      for (double& rate : base) rate /= std::pow(gamma, times);
      state.set("step_size", size);
      state.set("gamma", gamma);
    }
    state.set("base_lrs", kept_.contains("base_lrs") ? kept_.at("base_lrs") : list_of(base));
    state.set("last_epoch", count - 1);
    state.set("_step_count", count);
    state.set("_is_initial", false);
    state.set("_get_lr_called_within_step", false);
    state.set("_last_lr", list_of(rates));
    return state;
  }

  void load_state_dict(const StateDict& state) override {
    member(scheduler_, members::StepCount{}) = static_cast<unsigned>(state.get<std::int64_t>("last_epoch") + 1);
    kept_ = state;
  }

  void check(const SavedKey& saved, bool /*strict*/) override {
    if (step_lr_ == nullptr) return;
    compare(saved, "step_size", member(*step_lr_, members::StepSize{}));
    compare(saved, "gamma", member(*step_lr_, members::Gamma{}));
  }

 private:
  /// libtorch fixes these two when the scheduler is made.
  static void compare(const SavedKey& saved, const std::string& name, double here) {
    const auto found = saved.entries.find(name);
    const auto* primitive = found == saved.entries.end() ? nullptr : std::get_if<PrimitiveEntry>(found->second);
    if (primitive == nullptr) return;
    const Value value = primitive_value(*primitive);
    double there = here;
    if (const auto* number = value.get_if<double>()) there = *number;
    if (const auto* number = value.get_if<Integer>()) there = static_cast<double>(number->to_int64().value_or(-1));
    if (there != here) {
      throw Error(ErrorCode::kMismatch,
                  "'" + saved.key + "/" + name + "' is " + std::to_string(there) + " in the snapshot and " +
                      std::to_string(here) +
                      " here, where it can't be changed: make the scheduler with the saved value");
    }
  }

  LRScheduler& scheduler_;
  StepLR* step_lr_;  ///< the same, if it is one
  StateDict kept_;
};

class PlateauAdapter final : public Adapter {
 public:
  explicit PlateauAdapter(ReduceLROnPlateauScheduler& scheduler) : scheduler_(scheduler) {}

  StateDict state_dict() override {
    std::vector<double> min_lrs;
    for (const float rate : member(scheduler_, members::MinLrs{})) min_lrs.push_back(to_double(rate));
    const bool is_min = member(scheduler_, members::Mode{}) == ReduceLROnPlateauScheduler::min;
    const bool is_rel = member(scheduler_, members::ThresholdMode{}) == ReduceLROnPlateauScheduler::rel;
    StateDict state{{"factor", to_double(member(scheduler_, members::Factor{}))},
                    {"min_lrs", list_of(min_lrs)},
                    {"patience", integer(members::Patience{})},
                    {"cooldown", integer(members::Cooldown{})},
                    {"eps", member(scheduler_, members::Eps{})},
                    {"last_epoch", integer(members::LastEpoch{})},
                    {"mode_worse", to_double(member(scheduler_, members::ModeWorse{}))},
                    {"mode", is_min ? "min" : "max"},
                    {"threshold", member(scheduler_, members::Threshold{})},
                    {"threshold_mode", is_rel ? "rel" : "abs"},
                    {"best", to_double(member(scheduler_, members::Best{}))},
                    {"cooldown_counter", integer(members::CooldownCounter{})},
                    {"num_bad_epochs", integer(members::BadEpochs{})}};
    if (kept_.contains("default_min_lr")) state.set("default_min_lr", kept_.at("default_min_lr"));
    return state;
  }

  void load_state_dict(const StateDict& state) override {
    const auto min_lrs = state.get<std::vector<double>>("min_lrs");
    auto& own_min_lrs = member(scheduler_, members::MinLrs{});
    if (min_lrs.size() != own_min_lrs.size()) {
      throw Error(ErrorCode::kMismatch, "the saved scheduler has " + std::to_string(min_lrs.size()) +
                                            " parameter groups, here are " + std::to_string(own_min_lrs.size()));
    }
    const auto mode = state.get<std::string>("mode");
    const auto threshold_mode = state.get<std::string>("threshold_mode");
    own_min_lrs.assign(min_lrs.begin(), min_lrs.end());
    member(scheduler_, members::Mode{}) =
        mode == "min" ? ReduceLROnPlateauScheduler::min : ReduceLROnPlateauScheduler::max;
    member(scheduler_, members::ThresholdMode{}) =
        threshold_mode == "rel" ? ReduceLROnPlateauScheduler::rel : ReduceLROnPlateauScheduler::abs;
    member(scheduler_, members::ModeWorse{}) = state.get<float>("mode_worse");
    member(scheduler_, members::Factor{}) = state.get<float>("factor");
    member(scheduler_, members::Threshold{}) = state.get<double>("threshold");
    member(scheduler_, members::Eps{}) = state.get<double>("eps");
    member(scheduler_, members::Best{}) = state.get<float>("best");
    member(scheduler_, members::Patience{}) = state.get<int>("patience");
    member(scheduler_, members::Cooldown{}) = state.get<int>("cooldown");
    member(scheduler_, members::CooldownCounter{}) = state.get<int>("cooldown_counter");
    member(scheduler_, members::LastEpoch{}) = state.get<int>("last_epoch");
    member(scheduler_, members::BadEpochs{}) = state.get<int>("num_bad_epochs");
    kept_ = state;
  }

 private:
  template <typename Tag>
  std::int64_t integer(Tag tag) {
    return member(scheduler_, tag);
  }

  ReduceLROnPlateauScheduler& scheduler_;
  StateDict kept_;
};

}  // namespace

std::shared_ptr<Stateful> detail::wrap_scheduler(LRScheduler& scheduler) {
  return std::make_shared<LRSchedulerAdapter>(scheduler);
}

std::shared_ptr<Stateful> detail::wrap_plateau(ReduceLROnPlateauScheduler& scheduler) {
  return std::make_shared<PlateauAdapter>(scheduler);
}

}  // namespace torchsnapshot::libtorch
