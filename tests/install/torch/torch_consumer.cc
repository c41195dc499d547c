// A program as a user of the installed libtorch face would write it. Argument: the folder for the snapshot.
#include <torch/torch.h>
#include <torchsnapshot/torch.h>

#include <iostream>

namespace ts = torchsnapshot::libtorch;

int main(int /*argc*/, char** argv) {
  torch::nn::Linear model(3, 2);
  torch::optim::Adam optimizer(model->parameters());
  ts::StateDict progress{{"step", 7}};
  const ts::AppState app{{"model", model}, {"optim", optimizer}, {"progress", progress}, {"rng", ts::RNGState()}};
  ts::Snapshot::take(argv[1], app);

  const torch::Tensor saved = model->weight.detach().clone();
  torch::NoGradGuard no_grad;
  model->weight.zero_();
  progress["step"] = 0;
  ts::Snapshot(argv[1]).restore(app);
  if (!torch::equal(model->weight, saved) || progress.get<int>("step") != 7) return 1;

  // An exception of the library is caught as its own type on this side.
  try {
    torch::nn::Linear other(4, 2);
    ts::Snapshot(argv[1]).restore({{"model", other}});
    return 1;
  } catch (const torchsnapshot::Error& error) {
    if (error.code() != torchsnapshot::ErrorCode::kMismatch) return 1;
  }
  std::cout << "torch_consumer: fine\n";
  return 0;
}
