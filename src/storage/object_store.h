// A Storage on an object store.
#pragma once

#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <unordered_map>

#include "cloud/object_api.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// Names of objects that are being written through one storage, so that a second creator is told at once; a store
/// itself knows nothing of an object before it is complete. Thread-safe.
class NamesInWork {
 public:
  /// Takes a name; 0 when it is taken, else what give_back wants.
  std::uint64_t take(const std::string& key);
  void give_back(const std::string& key, std::uint64_t ticket) noexcept;
  /// Frees a name whoever has it.
  void forget(const std::string& key);

 private:
  std::mutex mutex_;
  std::uint64_t next_ = 1;
  std::unordered_map<std::string, std::uint64_t> names_;
};

/// Objects below the bucket's prefix. Writers and readers may outlive it.
std::shared_ptr<Storage> make_object_store(std::shared_ptr<ObjectApi> api);

/// Writes an object in parts that go out as soon as they are complete: from the caller's memory where a block covers a
/// whole part, else from a buffer. An object of one part is kept and sent by finish(). `name`: for messages.
std::unique_ptr<ObjectWriter> make_part_writer(std::shared_ptr<ObjectApi> api, std::shared_ptr<NamesInWork> names,
                                               std::uint64_t ticket, std::string key, std::string name,
                                               std::uint64_t size, std::stop_token stop);

/// Reads one version of an object; what its opening brought along is not fetched again.
std::unique_ptr<ObjectReader> open_object_reader(std::shared_ptr<ObjectApi> api, std::string key, std::string name,
                                                 std::stop_token stop);

}  // namespace torchsnapshot
