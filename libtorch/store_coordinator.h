// The ranks of a C++ program, over the key-value store that it has started them with.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "torchsnapshot/coordinator.h"

namespace c10d {
class Store;
}

namespace torchsnapshot::libtorch {

/// A c10d::Store as the engine's. What torch throws comes out as Error(kIo).
class C10dStore final : public KeyValueStore {
 public:
  /// Over a connection of its own, where the store can have one: what others do with it never holds this up.
  explicit C10dStore(c10::intrusive_ptr<c10d::Store> store);
  ~C10dStore() override;

  void set(const std::string& key, const std::string& value) override;
  std::optional<std::string> get(const std::string& key) override;
  std::int64_t add(const std::string& key, std::int64_t amount) override;
  std::string set_once(const std::string& key, const std::string& value) override;
  void remove(const std::string& key) override;

  /// True when all of these keys are set.
  bool has(const std::vector<std::string>& keys);
  /// The timeout that the store was made with.
  [[nodiscard]] std::chrono::milliseconds timeout() const;

 private:
  c10::intrusive_ptr<c10d::Store> store_;       ///< the program's; the one of rank 0 may be the server
  c10::intrusive_ptr<c10d::Store> connection_;  ///< what is used
};

/// The exchanges of the ranks over the store; their steps are in store_coordinator.cc. One that fails breaks the
/// coordinator on all ranks: every later one is an error that says so.
class StoreCoordinator final : public Coordinator {
 public:
  /// `patience`: how long an exchange waits for the slowest rank; the ranks other than 0 wait a second more.
  StoreCoordinator(std::unique_ptr<C10dStore> store, std::int64_t rank, std::int64_t world_size,
                   std::chrono::milliseconds patience);
  /// On rank 0, whose process may host the store: waits a moment for the others to have read what it told them.
  ~StoreCoordinator() override;

  [[nodiscard]] std::int64_t rank() const override { return rank_; }
  [[nodiscard]] std::int64_t world_size() const override { return world_size_; }
  std::string broadcast(const std::string& bytes) override;
  std::vector<std::string> all_gather(const std::string& bytes, std::size_t limit) override;
  std::vector<std::string> gather(const std::string& bytes) override;
  KeyValueStore& store() override { return *store_; }

 private:
  /// Runs one exchange. What goes wrong in it is told to the others.
  template <typename Body>
  auto exchange(const Body& body);
  [[nodiscard]] std::string key(const std::string& name) const { return prefix_ + std::to_string(number_) + name; }
  [[nodiscard]] std::string key(std::int64_t rank) const { return key("/" + std::to_string(rank)); }

  void put(const std::string& key, const std::string& bytes);
  std::string take_out(const std::string& key, bool remove);
  void remove(const std::string& key, std::size_t pieces);

  // The steps of an exchange.
  std::vector<std::string> collect(const std::string& own);
  void tell_all(const std::string& bytes);
  std::string hear_all();

  void wait_for(const std::vector<std::string>& keys);
  [[noreturn]] void fail_late(const std::vector<std::string>& keys);
  void linger(const char* counter, std::int64_t all, std::chrono::milliseconds limit) noexcept;

  const std::unique_ptr<C10dStore> store_;
  const std::int64_t rank_;
  const std::int64_t world_size_;
  const std::chrono::milliseconds patience_;
  std::string prefix_;
  std::int64_t number_ = 0;  ///< of the exchange
  std::string broken_;       ///< why there can be no more exchanges

  struct Told {
    std::string key;
    std::size_t pieces = 0;
  };
  std::vector<Told> told_;       ///< on rank 0: what is still in the store
  std::int64_t told_count_ = 0;  ///< on rank 0: in all
};

}  // namespace torchsnapshot::libtorch
