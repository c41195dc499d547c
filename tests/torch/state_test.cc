// Modules, values and generators: what a take and a restore do to them.
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "libtorch/archive.h"
#include "tests/torch/support.h"
#include "torchsnapshot/torch.h"

namespace torchsnapshot::libtorch {
namespace {

using torch::nn::Linear;

torch::nn::Sequential make_model() {
  return torch::nn::Sequential(Linear(3, 4), torch::nn::BatchNorm1d(4), Linear(4, 2));
}

TEST(Module, RestoresInPlaceByPythonsNames) {
  const TempFolder folder;
  torch::nn::Sequential model = make_model();
  Snapshot::take(folder.path("s"), {{"model", model}});

  torch::nn::Sequential other = make_model();
  const void* memory = other[0]->as<Linear>()->weight.data_ptr();
  const auto version = other[0]->as<Linear>()->weight._version();
  const AppState app{{"model", other}};
  const RestoreReport report = Snapshot(folder.path("s")).restore(app);
  EXPECT_TRUE(report.missing.empty() && report.unexpected.empty() && report.mismatched.empty());
  EXPECT_EQ(other[0]->as<Linear>()->weight.data_ptr(), memory);
  EXPECT_GT(other[0]->as<Linear>()->weight._version(), version) << "autograd learns of the change";
  expect_same(model->named_parameters(), other->named_parameters());
  expect_same(model->named_buffers(), other->named_buffers());

  const auto metadata = Snapshot(folder.path("s")).metadata();
  const auto* dict = std::get_if<DictEntry>(metadata->manifest.find("0/model"));
  ASSERT_NE(dict, nullptr);
  EXPECT_TRUE(dict->ordered);
  std::vector<std::string> names;
  for (const Key& key : dict->keys) names.push_back(key.text);
  EXPECT_EQ(names, (std::vector<std::string>{"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean",
                                             "1.running_var", "1.num_batches_tracked", "2.weight", "2.bias"}));
}

TEST(Module, AnotherShapeOrDtypeNamesThePathAndChangesNothing) {
  const TempFolder folder;
  torch::nn::Sequential model = make_model();
  Snapshot::take(folder.path("s"), {{"model", model}});
  torch::nn::Sequential wide(Linear(3, 4), torch::nn::BatchNorm1d(4), Linear(4, 3));
  const torch::Tensor before = wide[0]->as<Linear>()->weight.clone();
  expect_error(ErrorCode::kMismatch, "'model/2.weight'", [&] {
    Snapshot(folder.path("s")).restore({{"model", wide}});
  });
  EXPECT_TRUE(torch::equal(before, wide[0]->as<Linear>()->weight));
  torch::nn::Sequential doubles = make_model();
  doubles->to(torch::kDouble);
  expect_error(ErrorCode::kMismatch, "'model/0.weight'", [&] {
    Snapshot(folder.path("s")).restore({{"model", doubles}});
  });
}

TEST(Module, StrictMeansTheSameNames) {
  const TempFolder folder;
  torch::nn::Sequential model = make_model();
  Snapshot::take(folder.path("s"), {{"model", model}});
  torch::nn::Sequential shorter(Linear(3, 4), torch::nn::BatchNorm1d(torch::nn::BatchNorm1dOptions(4).affine(false)));
  torch::nn::Sequential longer = make_model();
  longer->push_back(Linear(2, 2));
  const torch::Tensor before = shorter[0]->as<Linear>()->weight.clone();
  expect_error(ErrorCode::kMismatch, "not in the module: '1.bias', '1.weight', '2.bias', '2.weight'", [&] {
    Snapshot(folder.path("s")).restore({{"m", shorter}, {"model", shorter}}, {.strict = true});
  });
  EXPECT_TRUE(torch::equal(before, shorter[0]->as<Linear>()->weight)) << "nothing was changed";
  expect_error(ErrorCode::kMismatch, "not in the snapshot: '3.bias', '3.weight'", [&] {
    Snapshot(folder.path("s")).restore({{"model", longer}});
  });

  expect_error(ErrorCode::kEntryNotFound, "'more'", [&] {
    Snapshot(folder.path("s")).restore({{"model", model}, {"more", shorter}});
  });

  const RestoreReport report =
      Snapshot(folder.path("s")).restore({{"model", longer}, {"more", shorter}}, {.strict = false});
  EXPECT_EQ(report.missing, (std::vector<std::string>{"model/3.weight", "model/3.bias", "more"}));
  expect_same(model->named_buffers(), longer->named_buffers());
  const RestoreReport less = Snapshot(folder.path("s")).restore({{"model", shorter}}, {.strict = false});
  EXPECT_EQ(less.unexpected.size(), 4U);
  EXPECT_TRUE(torch::equal(model[0]->as<Linear>()->weight, shorter[0]->as<Linear>()->weight));
}

struct SharedImpl : torch::nn::Module {
  SharedImpl() {
    a = register_module("a", Linear(3, 3));
    b = register_module("b", a);
    tied = register_parameter("tied", a->weight);
    none = register_parameter("none", {}, false);
    register_buffer("transposed", torch::rand({4, 3}).t());
  }
  Linear a{nullptr};
  Linear b{nullptr};
  torch::Tensor tied;
  torch::Tensor none;
};
TORCH_MODULE(Shared);

TEST(Module, SharedParametersHaveEachOfTheirNamesAndOneMemory) {
  const TempFolder folder;
  Shared model;
  Snapshot::take(folder.path("s"), {{"model", model}});
  Shared other;
  Snapshot(folder.path("s")).restore({{"model", *other}});  // by reference
  EXPECT_TRUE(torch::equal(model->tied, other->tied));
  EXPECT_TRUE(other->tied.is_same(other->a->weight));
  EXPECT_TRUE(torch::equal(model->named_buffers()["transposed"], other->named_buffers()["transposed"]));
  const Snapshot snapshot(folder.path("s"));
  EXPECT_TRUE(torch::equal(snapshot.read_tensor("0/model/b.weight"), model->tied));
  EXPECT_FALSE(snapshot.metadata()->manifest.find("0/model/none"));
}

StateDict all_kinds() {
  c10::impl::GenericDict numbers(c10::IntType::get(), c10::AnyType::get());
  numbers.insert(7, "seven");
  numbers.insert(-1, torch::ones({2}));
  c10::impl::GenericDict odd(c10::AnyType::get(), c10::AnyType::get());
  odd.insert(1.5, "a float is a key");
  c10::impl::GenericDict alike(c10::AnyType::get(), c10::AnyType::get());
  alike.insert(1, "number");
  alike.insert("01", "reads back as one");
  c10::impl::GenericList mixed(c10::AnyType::get());
  mixed.push_back(1);
  mixed.push_back(c10::IValue());
  mixed.push_back("x");
  return {{"int", std::int64_t{1} << 40},
          {"negative", -3},
          {"float", 0.1},
          {"bool", true},
          {"text", "größer/%"},
          {"a/b%c", 1},
          {"bytes", to_ivalue(Bytes{std::string("\0\xff", 2)})},
          {"none", c10::IValue()},
          {"tensor", torch::arange(6).reshape({2, 3})},
          {"half", torch::rand({3}).to(torch::kHalf)},
          {"scalar", torch::tensor(2.5)},
          {"empty", torch::empty({0, 3})},
          {"complex", torch::rand({2}, torch::kComplexFloat)},
          {"conj", torch::rand({2}, torch::kComplexFloat).conj()},
          {"quantized", torch::quantize_per_tensor(torch::rand({4}), 0.1, 0, torch::kQInt8)},
          {"nested", StateDict{{"x", 1}, {"y", StateDict{{"z", torch::ones({1})}}}}},
          {"numbers", numbers},
          {"odd", odd},
          {"alike", alike},
          {"ints", std::vector<std::int64_t>{1, 2, 3}},
          {"mixed", mixed},
          {"no_items", c10::impl::GenericList(c10::AnyType::get())},
          {"tuple", c10::ivalue::Tuple::create({0.9, 1, "x", c10::ivalue::Tuple::create({c10::IValue()})})},
          {"tensors", c10::ivalue::Tuple::create({torch::ones({2, 2}), torch::arange(3)})},
          {"number", c10::complex<double>(1, -2)},
          {"device", c10::Device(c10::kCUDA, 1)}};
}

TEST(Values, EveryKindComesBack) {
  const TempFolder folder;
  StateDict saved = all_kinds();
  Snapshot::take(folder.path("s"), {{"values", saved}});
  StateDict empty;
  Snapshot(folder.path("s")).restore({{"values", empty}});
  expect_same(saved, empty);
  // A second time, into what is there: the same values, in the same tensors.
  const torch::Tensor target = empty.get<torch::Tensor>("tensor").zero_();
  const RestoreReport report = Snapshot(folder.path("s")).restore({{"values", empty}});
  EXPECT_TRUE(report.mismatched.empty()) << report.mismatched[0];
  expect_same(saved, empty);
  EXPECT_TRUE(empty.get<torch::Tensor>("tensor").is_same(target));
}

TEST(Values, GetConvertsOrNamesTheKey) {
  const TempFolder folder;
  StateDict saved = all_kinds();
  Snapshot::take(folder.path("s"), {{"values", saved}});
  const StateDict state = Snapshot(folder.path("s")).read_state("values");
  EXPECT_EQ(state.get<std::int64_t>("int"), std::int64_t{1} << 40);
  EXPECT_EQ(state.get<int>("negative"), -3);
  EXPECT_EQ(state.get<double>("negative"), -3.0);
  EXPECT_EQ(state.get<std::vector<int>>("ints"), (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(state.at("ints").toIntVector(), (std::vector<std::int64_t>{1, 2, 3})) << "lists know their type";
  EXPECT_EQ(state.get<Bytes>("bytes").data, std::string("\0\xff", 2));
  EXPECT_EQ(state.get<StateDict>("nested").get<int>("x"), 1);
  expect_error(ErrorCode::kTypeMismatch, "'int' does not fit", [&] { (void)state.get<int>("int"); });
  expect_error(ErrorCode::kTypeMismatch, "'negative' does not fit", [&] { (void)state.get<unsigned>("negative"); });
  expect_error(ErrorCode::kTypeMismatch, "'none' is None", [&] { (void)state.get<std::string>("none"); });
  expect_error(ErrorCode::kEntryNotFound, "no key 'what'", [&] { (void)state.get<int>("what"); });
}

TEST(Values, KeysThatTheSnapshotLacksStay) {
  const TempFolder folder;
  StateDict saved{{"a", 1}};
  Snapshot::take(folder.path("s"), {{"values", saved}});
  StateDict target{{"a", 0}, {"b", 2}};
  const RestoreReport report = Snapshot(folder.path("s")).restore({{"values", target}});
  EXPECT_EQ(target.get<int>("a"), 1);
  EXPECT_EQ(target.get<int>("b"), 2);
  EXPECT_EQ(report.missing, std::vector<std::string>{"values/b"});
}

TEST(Values, WhatCannotBeSavedIsNamed) {
  const TempFolder folder;
  StateDict meta{{"inner", StateDict{{"m", torch::empty({2}, torch::kMeta)}}}};
  expect_error(ErrorCode::kUnsupported, "'values/inner/m' is a meta tensor", [&] {
    Snapshot::take(folder.path("s"), {{"values", meta}});
  });
  StateDict generator{{"inner", StateDict{{"g", at::detail::getDefaultCPUGenerator()}}}};
  expect_error(ErrorCode::kUnsupported, "'values/inner/g': a value of type Generator", [&] {
    Snapshot::take(folder.path("s"), {{"values", generator}});
  });
  c10::impl::GenericList self(c10::AnyType::get());
  self.push_back(self);
  StateDict endless{{"list", self}};
  expect_error(ErrorCode::kInvalidArgument, "levels deep, or contains itself", [&] {
    Snapshot::take(folder.path("s"), {{"values", endless}});
  });
  self.clear();
}

/// A class of a user, without a base class.
struct Counter {
  StateDict state_dict() const { return {{"count", count}, {"ema", ema}}; }
  void load_state_dict(const StateDict& state) {
    count = state.get<int>("count");
    in_place = state.get<torch::Tensor>("ema").is_same(ema);
  }
  int count = 0;
  torch::Tensor ema = torch::zeros({3});
  bool in_place = false;
};

TEST(AppStateTest, TakesClassesOfTheUserAndSmartPointers) {
  const TempFolder folder;
  Counter counter;
  counter.count = 5;
  counter.ema.fill_(2);
  auto shared = std::make_shared<Counter>();
  auto unique = std::make_unique<Counter>();
  auto module = std::make_shared<torch::nn::LinearImpl>(2, 2);
  torch::nn::AnyModule any(Linear(2, 2));
  Snapshot::take(folder.path("s"), {{"c", counter}, {"s", shared}, {"u", unique}, {"m", module}, {"a", any}});
  Counter other;
  Snapshot(folder.path("s")).restore({{"c", other}, {"m", module}, {"a", any}});
  EXPECT_EQ(other.count, 5);
  EXPECT_TRUE(other.in_place);
  EXPECT_TRUE(torch::equal(other.ema, counter.ema));
}

TEST(AppStateTest, RefusesAKeyTwiceAndASecondRng) {
  StateDict a;
  expect_error(ErrorCode::kInvalidArgument, "the key 'a' twice", [&] { AppState({{"a", a}, {"a", a}}); });
  expect_error(ErrorCode::kInvalidArgument, "two RNGStates, 'r' and 's'", [&] {
    AppState({{"r", RNGState()}, {"s", RNGState()}});
  });
  torch::nn::Linear empty(nullptr);
  expect_error(ErrorCode::kInvalidArgument, "empty module holder", [&] { AppState({{"m", empty}}); });
  std::shared_ptr<torch::nn::Module> shared;
  std::unique_ptr<Counter> unique;
  expect_error(ErrorCode::kInvalidArgument, "or pointer", [&] { AppState({{"m", shared}}); });
  expect_error(ErrorCode::kInvalidArgument, "or pointer", [&] { AppState({{"m", unique}}); });
}

/// Draws numbers when it is asked for its state.
struct Drawing {
  StateDict state_dict() const { return {{"drawn", torch::rand({1})}}; }
  void load_state_dict(const StateDict& /*state*/) const { torch::rand({1}); }
};

TEST(Rng, NumbersAfterARestoreAreThoseAfterTheTake) {
  const TempFolder folder;
  Drawing drawing;
  torch::manual_seed(7);
  Snapshot::take(folder.path("s"), {{"d", drawing}, {"rng", RNGState()}, {"e", drawing}});
  const torch::Tensor next = torch::rand({5});
  torch::manual_seed(7);
  EXPECT_TRUE(torch::equal(next, torch::rand({5}))) << "the take drew nothing";
  Snapshot(folder.path("s")).restore({{"rng", RNGState()}, {"d", drawing}});
  EXPECT_TRUE(torch::equal(next, torch::rand({5})));
}

TEST(AsyncTake, HoldsWhatWasThereWhenItReturned) {
  const TempFolder folder;
  torch::nn::Sequential model = make_model();
  torch::optim::Adam optimizer(model->parameters());
  StateDict progress{{"step", 1}};
  const AppState app{{"model", model}, {"optim", optimizer}, {"progress", progress}, {"rng", RNGState()}};
  torch::manual_seed(3);
  const torch::Tensor weight = model[0]->as<Linear>()->weight.detach().clone();
  const PendingSnapshot pending = Snapshot::async_take(folder.path("s"), app);
  {
    const torch::NoGradGuard no_grad;
    for (torch::Tensor& parameter : model->parameters()) parameter.fill_(-1);
  }
  progress["step"] = 2;
  const torch::Tensor drawn = torch::rand({3});
  const Snapshot snapshot = pending.wait();
  EXPECT_TRUE(pending.done());
  snapshot.restore(app);
  EXPECT_TRUE(torch::equal(model[0]->as<Linear>()->weight, weight));
  EXPECT_EQ(progress.get<int>("step"), 1);
  EXPECT_TRUE(torch::equal(drawn, torch::rand({3})));

  EXPECT_THROW((void)Snapshot::async_take("/proc/torchsnapshot_no_such_place", app).wait(), Error);
}

TEST(Restore, DamageIsAnErrorOrIsReported) {
  const TempFolder folder;
  StateDict saved{{"w", torch::zeros({100'000})}, {"pair", c10::ivalue::Tuple::create({1, 2})}};
  const Snapshot snapshot = Snapshot::take(folder.path("s"), {{"v", saved}});
  for (const std::string& object : snapshot.core().storage()->list("data/")) {
    std::fstream file(folder.path("s/" + object), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(300);
    file.put('x');
  }
  StateDict target{{"w", torch::ones({100'000})}, {"pair", "mine"}};
  expect_error(ErrorCode::kCorrupt, "v/", [&] { Snapshot(folder.path("s")).restore({{"v", target}}); });
  RestoreOptions options;
  options.keep_going = true;
  const RestoreReport report = Snapshot(folder.path("s")).restore({{"v", target}}, options);
  EXPECT_EQ(report.corrupt.size(), 2U);
  EXPECT_EQ(target.get<std::string>("pair"), "mine") << "what can't be read stays";
}

TEST(Read, ObjectsTensorsAndShards) {
  const TempFolder folder;
  StateDict saved{{"w", torch::arange(1200, torch::kFloat).reshape({100, 12})}, {"n", 3}, {"c", torch::ones({2, 2})}};
  TakeOptions chunked;
  chunked.max_chunk_bytes = 1000;
  const Snapshot snapshot = Snapshot::take(folder.path("s"), {{"v", saved}}, chunked);
  const torch::Tensor w = saved.get<torch::Tensor>("w");
  EXPECT_EQ(snapshot.read_object("0/v/n").toInt(), 3);
  EXPECT_TRUE(torch::equal(snapshot.read_tensor("0/v/w"), w));
  EXPECT_TRUE(torch::equal(StateDict(snapshot.read_object("0/v")).get<torch::Tensor>("w"), w));
  const torch::Tensor out = torch::zeros({12, 100}).t();
  snapshot.read_into("0/v/w", out);
  EXPECT_TRUE(torch::equal(out, w));
  EXPECT_TRUE(torch::equal(snapshot.read_shard("0/v/w", {30, 4}, {50, 5}), w.narrow(0, 30, 50).narrow(1, 4, 5)));
  snapshot.read_shard_into("0/v/w", {98, 0}, out.narrow(0, 0, 2));
  EXPECT_TRUE(torch::equal(out.narrow(0, 0, 2), w.narrow(0, 98, 2)));

  expect_error(ErrorCode::kTypeMismatch, "'0/v/n' is no tensor", [&] { (void)snapshot.read_tensor("0/v/n"); });
  expect_error(ErrorCode::kEntryNotFound, "0/v/x", [&] { (void)snapshot.read_object("0/v/x"); });
  expect_error(ErrorCode::kMismatch, "v/w", [&] { snapshot.read_into("0/v/w", torch::zeros({3})); });
  expect_error(ErrorCode::kInvalidArgument, "does not lie within", [&] {
    (void)snapshot.read_shard("0/v/w", {60, 0}, {50, 5});
  });
  expect_error(ErrorCode::kEntryNotFound, "'the'", [&] { (void)snapshot.read_state("the"); });
}

TEST(Read, ExistsOnceItIsCommitted) {
  const TempFolder folder;
  const Snapshot snapshot(folder.path("s"));
  EXPECT_FALSE(snapshot.exists());
  expect_error(ErrorCode::kNotASnapshot, "", [&] { snapshot.restore({{"rng", RNGState()}}); });
  Snapshot::take(folder.path("s"), {{"rng", RNGState()}});
  EXPECT_TRUE(snapshot.exists());
}

TEST(Options, ProgressMemoryStorageAndStop) {
  StateDict saved{{"w", torch::rand({1000})}};
  std::uint64_t done = 0;
  TakeOptions options;
  options.io.on_progress = [&](const Progress& progress) { done = progress.bytes_done; };
  Snapshot::take("memory://torch_options", {{"v", saved}}, options);
  EXPECT_EQ(done, 4000U);
  StateDict target{{"w", torch::zeros({1000})}};
  RestoreOptions restore;
  restore.io.on_progress = options.io.on_progress;
  done = 0;
  Snapshot("memory://torch_options").restore({{"v", target}}, restore);
  EXPECT_EQ(done, 4000U);
  expect_same(saved, target);
  done = 0;
  Snapshot::async_take("memory://torch_options_async", {{"v", saved}}, options).wait();
  EXPECT_EQ(done, 4000U);
  std::stop_source stop;
  stop.request_stop();
  options.io.stop = stop.get_token();
  expect_error(ErrorCode::kCancelled, "", [&] { Snapshot::take("memory://torch_stop", {{"v", saved}}, options); });
}

TEST(Archive, SimpleValuesGiveEqualBytes) {
  EXPECT_EQ(save_archive(c10::IValue()), save_archive(c10::IValue()));
  const auto betas = c10::ivalue::Tuple::create({0.9, 0.999});
  EXPECT_EQ(save_archive(betas), save_archive(c10::ivalue::Tuple::create({0.9, 0.999})));
}

/// Damaged and cut archives are errors of ours, whatever byte it is.
TEST(Archive, DamageIsAnErrorNeverACrash) {
  c10::impl::GenericDict dict(c10::AnyType::get(), c10::AnyType::get());
  dict.insert("t", torch::arange(20).reshape({4, 5}).t());
  dict.insert(2, c10::ivalue::Tuple::create({1, "x", c10::IValue()}));
  const std::string good = save_archive(dict);
  std::srand(1);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bad = good;
    const int changes = 1 + std::rand() % 3;
    for (int i = 0; i < changes; ++i)
      bad[static_cast<std::size_t>(std::rand()) % bad.size()] = static_cast<char>(std::rand());
    if (round % 10 == 0) bad.resize(static_cast<std::size_t>(std::rand()) % bad.size());
    try {
      (void)load_archive(bad);
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 500);
}

}  // namespace
}  // namespace torchsnapshot::libtorch
