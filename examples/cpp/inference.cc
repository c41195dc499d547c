// Inference with a part of a snapshot: one tensor, and of a large one only the rows that this process serves, as a
// tensor-parallel server does. Nothing else of the snapshot is read.
//
// Usage: inference SNAPSHOT PATH RANK WORLD    PATH: a matrix in it, such as 0/model/0.weight
#include <torch/torch.h>
#include <torchsnapshot/torch.h>

#include <exception>
#include <iostream>
#include <string>

namespace ts = torchsnapshot::libtorch;

namespace {

void serve(const std::string& url, const std::string& path, std::int64_t rank, std::int64_t world) {
  const ts::Snapshot snapshot(url);
  const auto* entry = snapshot.metadata()->manifest.find(path);
  const auto* saved = entry == nullptr ? nullptr : std::get_if<torchsnapshot::TensorEntry>(entry);
  if (saved == nullptr || saved->shape.size() != 2) throw std::invalid_argument(path + " is no matrix in " + url);
  const std::int64_t rows = saved->shape[0] / world;
  const std::int64_t columns = saved->shape[1];

  // This rank's rows, straight into memory of the server's own.
  torch::Tensor shard = torch::empty({rows, columns});
  snapshot.read_shard_into(path, {rank * rows, 0}, shard);

  const torch::InferenceMode inference;
  const torch::Tensor y = torch::matmul(shard, torch::ones({columns}));
  std::cout.precision(9);
  std::cout << "rows " << rank * rows << " to " << (rank + 1) * rows << ", sum " << y.sum().item<float>() << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: inference SNAPSHOT PATH RANK WORLD\n";
    return 2;
  }
  try {
    serve(argv[1], argv[2], std::stoll(argv[3]), std::stoll(argv[4]));
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "inference: " << error.what() << "\n";
    return 1;
  }
}
