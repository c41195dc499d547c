// Take and restore of a GPT-2-sized state (124 M parameters with AdamW: 1.49 GB) from C++, beside torch::save and
// torch::load; one line of JSON per round. benchmarks/torch_cpp.py runs it together with the Python path.
//
// Usage: torch_cpp FOLDER ROUNDS
#include <fcntl.h>
#include <torch/torch.h>
#include <torchsnapshot/torch.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

namespace ts = torchsnapshot::libtorch;

namespace {

constexpr std::int64_t kWidth = 768;

/// The tensors of GPT-2 small, by its names.
struct Gpt2Impl : torch::nn::Module {
  Gpt2Impl() {
    add("wte_weight", {50257, kWidth});
    add("wpe_weight", {1024, kWidth});
    for (int layer = 0; layer < 12; ++layer) {
      const std::string h = "h" + std::to_string(layer) + "_";
      for (const char* norm : {"ln_1_", "ln_2_"}) {
        add(h + norm + "weight", {kWidth});
        add(h + norm + "bias", {kWidth});
      }
      add(h + "attn_weight", {kWidth, 3 * kWidth});
      add(h + "attn_bias", {3 * kWidth});
      add(h + "attn_proj_weight", {kWidth, kWidth});
      add(h + "attn_proj_bias", {kWidth});
      add(h + "fc_weight", {kWidth, 4 * kWidth});
      add(h + "fc_bias", {4 * kWidth});
      add(h + "fc_proj_weight", {4 * kWidth, kWidth});
      add(h + "fc_proj_bias", {kWidth});
    }
    add("ln_f_weight", {kWidth});
    add("ln_f_bias", {kWidth});
  }
  void add(const std::string& name, at::IntArrayRef shape) { register_parameter(name, torch::rand(shape)); }
};
TORCH_MODULE(Gpt2);

double seconds(const std::function<void()>& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// To the disk, or out of the page cache: loads begin cold.
void sync_and_drop(const std::filesystem::path& folder) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const int file = open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) continue;
    fsync(file);
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    close(file);
  }
}

void bench(const std::filesystem::path& folder, int rounds) {
  Gpt2 model;
  torch::optim::AdamW optimizer(model->parameters());
  for (torch::Tensor& parameter : model->parameters()) parameter.mutable_grad() = torch::ones_like(parameter);
  optimizer.step();
  optimizer.zero_grad();
  const ts::AppState app{{"model", model}, {"optim", optimizer}};
  for (int round = 0; round < rounds; ++round) {
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder / "saved");
    const double take = seconds([&] { ts::Snapshot::take((folder / "snapshot").string(), app); });
    sync_and_drop(folder);
    const torch::Tensor sample = model->parameters()[2].detach().clone();
    {
      const torch::NoGradGuard no_grad;
      for (torch::Tensor& parameter : model->parameters()) parameter.zero_();
    }
    // Before torch::load, which makes new tensors for the optimizer.
    const double restore = seconds([&] { ts::Snapshot((folder / "snapshot").string()).restore(app); });
    if (!torch::equal(sample, model->parameters()[2])) throw std::runtime_error("the restore is wrong");
    const double save = seconds([&] {
      torch::save(model, folder / "saved/model.pt");
      torch::save(optimizer, folder / "saved/optim.pt");
      sync_and_drop(folder / "saved");
    });
    const double load = seconds([&] {
      torch::load(model, folder / "saved/model.pt");
      torch::load(optimizer, folder / "saved/optim.pt");
    });
    std::cout << R"({"take": )" << take << R"(, "save": )" << save << R"(, "restore": )" << restore << R"(, "load": )"
              << load << "}" << std::endl;
  }
  std::filesystem::remove_all(folder);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: torch_cpp FOLDER ROUNDS\n";
    return 2;
  }
  try {
    bench(argv[1], std::stoi(argv[2]));
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "torch_cpp: " << error.what() << "\n";
    return 1;
  }
}
