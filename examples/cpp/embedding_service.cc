// A service that keeps a table of embeddings, changes rows as requests come in, and takes a snapshot every so many
// requests. Started again, it goes on with the last one. It needs no torch: the table is plain memory.
//
// Usage: embedding_service PLACE REQUESTS    PLACE: a folder, s3://bucket/prefix or gs://bucket/prefix
#include <torchsnapshot/snapshot.h>

#include <cstdint>
#include <exception>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

namespace ts = torchsnapshot;

namespace {

constexpr std::int64_t kRows = 10'000;
constexpr std::int64_t kWidth = 64;
constexpr std::int64_t kSnapshotEvery = 1'000;

class EmbeddingTable {
 public:
  /// One request: adds to a row that depends on the request's number.
  void update() {
    const auto row = static_cast<std::size_t>(served_ * 7919 % kRows);
    for (std::size_t i = 0; i < kWidth; ++i) values_[row * kWidth + i] += 1.0F;
    ++served_;
  }

  /// Returns as soon as the values are copied: requests are served while they are written.
  ts::PendingSnapshot save(const std::string& path) { return ts::Snapshot::async_take(path, state()); }

  void load(const std::string& path) {
    ts::AppState app = state();
    ts::Snapshot(path).restore(app);  // the values into their place
    const auto* saved = app.at(0).second.get_if<ts::Dict>()->find("served")->get_if<ts::Integer>();
    served_ = saved->to_int64().value();
  }

  [[nodiscard]] std::int64_t served() const { return served_; }
  [[nodiscard]] double sum() const {
    double sum = 0;
    for (const float value : values_) sum += value;
    return sum;
  }

 private:
  /// What is saved: a view of the values, and the count.
  ts::AppState state() {
    ts::Dict table;
    table.items.emplace_back("values", ts::TensorView::dense(values_.data(), ts::DType::kFloat32, {kRows, kWidth}));
    table.items.emplace_back("served", ts::Integer(served_));
    ts::AppState app;
    app.emplace_back("table", std::move(table));
    return app;
  }

  std::vector<float> values_ = std::vector<float>(kRows * kWidth);
  std::int64_t served_ = 0;
};

/// True when there is a committed snapshot.
bool exists(const ts::Snapshot& snapshot) {
  const std::string name(ts::kMetadataName);
  try {
    (void)snapshot.storage()->sizes({&name, 1}, {});
    return true;
  } catch (const ts::Error& error) {
    if (error.code() == ts::ErrorCode::kNotFound) return false;
    throw;
  }
}

void serve(const std::string& place, std::int64_t requests) {
  const std::string path = place + "/table";
  EmbeddingTable table;
  if (exists(ts::Snapshot(path))) table.load(path);
  std::cout << "begins after request " << table.served() << "\n";
  std::optional<ts::PendingSnapshot> pending;
  while (table.served() < requests) {
    table.update();
    if (table.served() % kSnapshotEvery != 0) continue;
    if (pending) pending->wait();  // throws what went wrong with the one before
    pending = table.save(path);
  }
  if (pending) pending->wait();
  std::cout << "served " << table.served() << ", sum " << table.sum() << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: embedding_service PLACE REQUESTS\n";
    return 2;
  }
  try {
    serve(argv[1], std::stoll(argv[2]));
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "embedding_service: " << error.what() << "\n";
    return 1;
  }
}
