// Reads one tensor of a snapshot, however many others there are, into memory of its own; without torch.
//
// Usage: read_tensor SNAPSHOT PATH    such as 0/model/layers.0.weight
#include <torchsnapshot/snapshot.h>

#include <cstddef>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <vector>

namespace ts = torchsnapshot;

namespace {

void read(const char* url, const char* path) {
  const ts::Snapshot snapshot(url);
  const ts::Entry* entry = snapshot.metadata()->manifest.find(path);
  const auto* saved = entry == nullptr ? nullptr : std::get_if<ts::TensorEntry>(entry);
  if (saved == nullptr) throw std::invalid_argument("no tensor of that path");

  std::vector<std::byte> memory(ts::dense_bytes(saved->dtype, saved->shape));
  const ts::Value target = ts::TensorView::dense(memory.data(), saved->dtype, saved->shape);
  (void)snapshot.read_object(path, &target);

  unsigned checksum = 0;
  for (const std::byte byte : memory) checksum = checksum * 31 + std::to_integer<unsigned>(byte);
  std::cout << ts::dtype_name(saved->dtype) << ", " << memory.size() << " bytes, checksum " << checksum << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: read_tensor SNAPSHOT PATH\n";
    return 2;
  }
  try {
    read(argv[1], argv[2]);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "read_tensor: " << error.what() << "\n";
    return 1;
  }
}
