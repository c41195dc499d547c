// Trains on from snapshots that Python has taken, and takes some for Python: the C++ side of test_interchange.py.
//
// Usage: torch_interchange --relay FROM TO           a snapshot of the key "values", restored and taken again
//        torch_interchange --relay-skipping FROM TO  the same without what only Python can make, whose paths it prints
//        torch_interchange FOLDER...   each with a snapshot "python" of a model, an optimizer, the data, and what they
// are; gets a snapshot "cpp" after ten steps, and "result" with the losses of these ten and of the next ten.
#include <torch/torch.h>
#include <torchsnapshot/torch.h>

#include <exception>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

namespace ts = torchsnapshot::libtorch;
namespace nn = torch::nn;

namespace {

constexpr int kSteps = 10;

/// As class Net of test_interchange.py.
struct NetImpl : nn::Module {
  explicit NetImpl(const std::string& name) : kind(name) {
    std::int64_t features = 8;
    if (kind == "linear") {
      linear = register_module("body", nn::Linear(8, 8));
    } else if (kind == "conv") {
      layers = register_module("body", nn::Sequential(nn::Conv2d(nn::Conv2dOptions(1, 2, 3)), nn::Flatten()));
      features = 2 * 4 * 4;
    } else if (kind == "embedding") {
      embedding = register_module("body", nn::Embedding(20, 8));
    } else if (kind == "layernorm") {
      layers = register_module("body", nn::Sequential(nn::Linear(8, 8), nn::LayerNorm(nn::LayerNormOptions({8}))));
    } else if (kind == "batchnorm") {
      layers = register_module("body", nn::Sequential(nn::Linear(8, 8), nn::BatchNorm1d(8)));
    } else if (kind == "rnn") {
      rnn = register_module("body", nn::RNN(nn::RNNOptions(8, 8).num_layers(2).batch_first(true)));
    } else if (kind == "lstm") {
      lstm = register_module("body", nn::LSTM(nn::LSTMOptions(8, 8).num_layers(2).batch_first(true)));
    } else if (kind == "gru") {
      gru = register_module("body", nn::GRU(nn::GRUOptions(8, 8).bidirectional(true).batch_first(true)));
      features = 16;
    } else if (kind == "attention") {
      attention = register_module("body", nn::MultiheadAttention(8, 2));
    } else if (kind == "transformer") {
      transformer =
          register_module("body", nn::Transformer(nn::TransformerOptions(8, 2, 1, 1).dim_feedforward(16).dropout(0)));
    } else {
      throw std::invalid_argument("no model " + kind);
    }
    head = register_module("head", nn::Linear(features, 4));
  }

  torch::Tensor forward(const torch::Tensor& x) {
    torch::Tensor h;
    if (rnn) h = std::get<0>(rnn(x)).select(1, -1);
    if (lstm) h = std::get<0>(lstm(x)).select(1, -1);
    if (gru) h = std::get<0>(gru(x)).select(1, -1);
    if (attention) h = std::get<0>(attention(x, x, x)).mean(0);
    if (transformer) h = transformer(x, x).mean(0);
    if (linear) h = linear(x);
    if (embedding) h = embedding(x).mean(1);
    if (layers) h = layers->forward(x);
    return head(torch::tanh(h));
  }

  std::string kind;
  nn::Linear linear{nullptr};
  nn::Embedding embedding{nullptr};
  nn::Sequential layers{nullptr};
  nn::RNN rnn{nullptr};
  nn::LSTM lstm{nullptr};
  nn::GRU gru{nullptr};
  nn::MultiheadAttention attention{nullptr};
  nn::Transformer transformer{nullptr};
  nn::Linear head{nullptr};
};
TORCH_MODULE(Net);

/// The optimizer's options are not those of Python: a restore has to bring them.
std::unique_ptr<torch::optim::Optimizer> make_optimizer(const std::string& kind, Net& model) {
  using namespace torch::optim;
  if (kind == "groups") {
    std::vector<OptimizerParamGroup> groups;
    groups.emplace_back(model->children()[0]->parameters());
    groups.emplace_back(model->head->parameters());
    return std::make_unique<AdamW>(groups, AdamWOptions(0.5));
  }
  const std::vector<torch::Tensor> parameters = model->parameters();
  if (kind.starts_with("adamw")) return std::make_unique<AdamW>(parameters, AdamWOptions(0.5));
  if (kind.starts_with("adam")) return std::make_unique<Adam>(parameters, AdamOptions(0.5));
  if (kind.starts_with("sgd")) return std::make_unique<SGD>(parameters, SGDOptions(0.5));
  if (kind.starts_with("rmsprop")) return std::make_unique<RMSprop>(parameters, RMSpropOptions(0.5));
  if (kind.starts_with("adagrad")) return std::make_unique<Adagrad>(parameters, AdagradOptions(0.5));
  if (kind.starts_with("lbfgs")) return std::make_unique<LBFGS>(parameters, LBFGSOptions(0.5));
  throw std::invalid_argument("no optimizer " + kind);
}

struct Schedulers {
  std::unique_ptr<torch::optim::StepLR> step;
  std::unique_ptr<torch::optim::ReduceLROnPlateauScheduler> plateau;
};

std::vector<double> train(Net& model, torch::optim::Optimizer& optimizer, Schedulers& schedulers,
                          const ts::StateDict& data) {
  std::vector<double> losses;
  for (int step = 0; step < kSteps; ++step) {
    const torch::Tensor loss = optimizer.step([&] {
      optimizer.zero_grad();
      torch::Tensor current = torch::mse_loss(model(data.get<torch::Tensor>("x")), data.get<torch::Tensor>("y"));
      current.backward();
      return current;
    });
    losses.push_back(loss.item<double>());
    if (schedulers.step) schedulers.step->step();
    if (schedulers.plateau) schedulers.plateau->step(1.0F);  // never better: the rate falls
  }
  return losses;
}

void run(const std::string& folder) {
  const ts::Snapshot python(folder + "/python");
  const ts::StateDict kind = python.read_state("case");
  const auto scheduler = kind.get<std::string>("scheduler");
  Net model(kind.get<std::string>("model"));
  const auto optimizer = make_optimizer(kind.get<std::string>("optimizer"), model);
  ts::StateDict data;
  ts::AppState app{{"model", model}, {"optim", optimizer}, {"data", data}, {"rng", ts::RNGState()}};
  Schedulers schedulers;
  if (scheduler == "step") {
    schedulers.step = std::make_unique<torch::optim::StepLR>(*optimizer, 4, 0.5);
    app.add({"sched", schedulers.step});
  } else if (scheduler == "plateau") {
    schedulers.plateau = std::make_unique<torch::optim::ReduceLROnPlateauScheduler>(*optimizer);
    app.add({"sched", schedulers.plateau});
  }
  const ts::RestoreReport report = python.restore(app);
  if (!report.missing.empty() || !report.mismatched.empty()) throw std::runtime_error("the restore did not match");

  ts::StateDict result;
  result["drawn"] = torch::rand({4});
  result["first"] = train(model, *optimizer, schedulers, data);
  ts::Snapshot::take(folder + "/cpp", app);
  result["drawn_after"] = torch::rand({4});
  result["second"] = train(model, *optimizer, schedulers, data);
  ts::Snapshot::take(folder + "/result", {{"result", result}});
}

void relay(const std::string& from, const std::string& to, ts::PythonObjects python_objects) {
  ts::StateDict values;
  const ts::AppState app{{"values", values}};
  const ts::RestoreReport report = ts::Snapshot(from).restore(app, {.python_objects = python_objects});
  for (const std::string& path : report.skipped) std::cout << "skipped " << path << "\n";
  ts::Snapshot::take(to, app);
}

}  // namespace

int main(int argc, char** argv) {
  at::set_num_threads(1);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() == 3 && arguments[0].starts_with("--relay")) {
    try {
      relay(arguments[1], arguments[2],
            arguments[0] == "--relay" ? ts::PythonObjects::kError : ts::PythonObjects::kSkip);
      return 0;
    } catch (const std::exception& error) {
      std::cerr << error.what() << "\n";
      return 1;
    }
  }
  int failed = 0;
  for (const std::string& folder : arguments) {
    try {
      run(folder);
    } catch (const std::exception& error) {
      std::cerr << folder << ": " << error.what() << "\n";
      failed = 1;
    }
  }
  return failed;
}
