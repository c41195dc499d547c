// Training that survives being killed at any moment: run it again, and it goes on from the last snapshot, bit for bit.
//
// Usage: train_resume PLACE STEPS [KILL_AT]    trains up to STEPS; with KILL_AT it ends there as if killed
//        PLACE: a folder, s3://bucket/prefix or gs://bucket/prefix
#include <torch/torch.h>
#include <torchsnapshot/torch.h>

#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>

namespace ts = torchsnapshot::libtorch;

namespace {

constexpr std::int64_t kSnapshotEvery = 10;

void train(const std::string& place, std::int64_t steps, std::int64_t kill_at) {
  torch::manual_seed(1);
  torch::nn::Sequential model(torch::nn::Linear(16, 64), torch::nn::BatchNorm1d(64), torch::nn::ReLU(),
                              torch::nn::Dropout(0.1), torch::nn::Linear(64, 4));
  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(0.01));
  torch::optim::StepLR scheduler(optimizer, 25, 0.5);
  ts::StateDict progress{{"step", 0}, {"loss", 0.0}};
  ts::AppState app{
      {"model", model}, {"optim", optimizer}, {"sched", scheduler}, {"progress", progress}, {"rng", ts::RNGState()}};

  const std::string path = place + "/latest";
  if (const ts::Snapshot latest(path); latest.exists()) {
    latest.restore(app);
    std::cout << "resumed at step " << progress.get<std::int64_t>("step") << "\n";
  }
  while (progress.get<std::int64_t>("step") < steps) {
    const torch::Tensor x = torch::rand({32, 16});
    const torch::Tensor loss = torch::mse_loss(model->forward(x), x.narrow(1, 0, 4));
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
    scheduler.step();
    const std::int64_t step = progress.get<std::int64_t>("step") + 1;
    progress["step"] = step;
    progress["loss"] = loss.item<double>();
    if (step % kSnapshotEvery == 0) ts::Snapshot::take(path, app);  // the old one stays valid until this is committed
    if (step == kill_at) std::_Exit(3);
  }
  std::cout.precision(17);
  std::cout << "step " << steps << " loss " << progress.get<double>("loss") << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: train_resume PLACE STEPS [KILL_AT]\n";
    return 2;
  }
  try {
    train(argv[1], std::stoll(argv[2]), argc > 3 ? std::stoll(argv[3]) : 0);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "train_resume: " << error.what() << "\n";
    return 1;
  }
}
