// A program as a user of the installed library would write it: takes a snapshot, restores it, reads one tensor.
#include <torchsnapshot/snapshot.h>

#include <cstdlib>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

namespace ts = torchsnapshot;

namespace {

void require(bool condition, const char* what) {
  if (!condition) {
    std::cerr << "consumer: not so: " << what << "\n";
    std::exit(1);
  }
}

ts::AppState app_state(std::vector<float>& weight, std::int64_t step) {
  ts::Dict model;
  model.items.emplace_back("weight", ts::TensorView::dense(weight.data(), ts::DType::kFloat32, {4, 25}));
  ts::Dict progress;
  progress.items.emplace_back("step", ts::Integer(step));
  ts::AppState app;
  app.emplace_back("model", std::move(model));
  app.emplace_back("progress", std::move(progress));
  return app;
}

}  // namespace

int main(int argc, char** argv) {
  require(argc == 2, "one argument, the folder for the snapshot");
  const std::string path = argv[1];

  std::vector<float> saved(100);
  std::iota(saved.begin(), saved.end(), 1.0F);
  ts::Snapshot::take(path, app_state(saved, 7));

  std::vector<float> restored(100, 0.0F);
  ts::AppState target = app_state(restored, 0);
  const ts::Snapshot snapshot(path);
  const ts::RestoreReport report = snapshot.restore(target);
  require(report.missing.empty() && report.unexpected.empty() && report.mismatched.empty(), "everything matched");
  require(restored == saved, "the tensor was restored in place");
  const auto* progress = target[1].second.get_if<ts::Dict>();
  require(progress != nullptr && progress->items.at(0).second.get_if<ts::Integer>() != nullptr, "there is a step");
  require(progress->items.at(0).second.get_if<ts::Integer>()->to_int64() == 7, "the step was restored");

  const ts::Value weight = snapshot.read_object("0/model/weight");
  const auto* view = weight.get_if<ts::TensorView>();
  require(view != nullptr && view->shape == ts::Dims({4, 25}), "read_object gives the tensor");

  // An exception of the library is caught as its own type on this side.
  try {
    ts::Snapshot(path + "/nothing").metadata();
    require(false, "a folder without a snapshot is an error");
  } catch (const ts::Error& error) {
    require(error.code() == ts::ErrorCode::kNotASnapshot, "the error says that there is no snapshot");
  }

  // Metadata in YAML can be read where yaml-cpp was found; linking it is the package's business.
  try {
    require(ts::parse_metadata("version: 0.1.0\nworld_size: 1\nmanifest: {}\n").world_size == 1, "YAML is understood");
  } catch (const ts::Error& error) {
    require(error.code() == ts::ErrorCode::kUnsupported, "without yaml-cpp, YAML is unsupported");
  }
  std::cout << "consumer: fine\n";
  return 0;
}
