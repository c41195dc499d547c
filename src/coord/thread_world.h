// Ranks as threads of one process: for tests, and for programs that simulate many ranks.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "torchsnapshot/coordinator.h"

namespace torchsnapshot {

/// A store in memory. `fail` makes every later call throw, as if the server were gone.
class MemoryKeyValueStore final : public KeyValueStore {
 public:
  void set(const std::string& key, const std::string& value) override;
  std::optional<std::string> get(const std::string& key) override;
  std::int64_t add(const std::string& key, std::int64_t amount) override;
  std::string set_once(const std::string& key, const std::string& value) override;
  void remove(const std::string& key) override;

  void fail() noexcept { failed_ = true; }
  /// Keys that are set.
  [[nodiscard]] std::size_t size() const;

 private:
  void check() const;

  mutable std::mutex mutex_;
  std::map<std::string, std::string> values_;
  std::map<std::string, std::int64_t> numbers_;
  std::atomic<bool> failed_{false};
};

/// A world of `size` ranks. A rank that leaves ends the exchanges of the others with an error, as the death of a
/// process would.
class ThreadWorld {
 public:
  explicit ThreadWorld(std::int64_t size);
  ~ThreadWorld();
  ThreadWorld(const ThreadWorld&) = delete;
  ThreadWorld& operator=(const ThreadWorld&) = delete;

  /// What a thread of that rank uses; as long as the world.
  Coordinator& rank(std::int64_t rank);
  MemoryKeyValueStore& store() noexcept { return store_; }
  /// Exchanges that rank 0 took part in.
  [[nodiscard]] int exchanges() const noexcept { return exchanges_; }
  /// Bytes that ranks have given to hand_round.
  [[nodiscard]] std::uint64_t handed_bytes() const noexcept { return handed_bytes_; }

  /// Runs `body` for every rank, each on a thread of its own, and returns what each threw ("" for nothing).
  std::vector<std::string> run(const std::function<void(Coordinator&)>& body);

 private:
  class Rank;

  /// All bytes of one exchange, when every rank has brought its own.
  std::vector<std::string> exchange(std::int64_t rank, const std::string& bytes);
  void leave(std::int64_t rank);

  MemoryKeyValueStore store_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> bytes_;   ///< of the exchange under way
  std::vector<std::string> result_;  ///< of the last one
  std::size_t present_ = 0;
  std::uint64_t round_ = 0;
  std::int64_t gone_ = -1;  ///< a rank that left
  std::atomic<int> exchanges_{0};
  std::atomic<std::uint64_t> handed_bytes_{0};
};

}  // namespace torchsnapshot
