// How the ranks of one program talk to each other. The engine brings no network of its own: a face implements this
// over what the program has already (torch.distributed in Python).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace torchsnapshot {

struct TakeMemory;

/// Small values by name that all ranks see. No call waits for another rank. Thread-safe. What fails, as a store whose
/// server is gone, is an Error.
class KeyValueStore {
 public:
  virtual ~KeyValueStore() = default;
  KeyValueStore() = default;
  KeyValueStore(const KeyValueStore&) = delete;
  KeyValueStore& operator=(const KeyValueStore&) = delete;

  virtual void set(const std::string& key, const std::string& value) = 0;
  /// Nothing when no rank has set the key.
  virtual std::optional<std::string> get(const std::string& key) = 0;
  /// Adds to a number (0 when new) and returns the sum. Atomic. Keys of numbers are not read with get().
  virtual std::int64_t add(const std::string& key, std::int64_t amount) = 0;
  /// Sets the key (to a value that is not empty) if no rank has yet, and returns the value that it has then. Atomic.
  virtual std::string set_once(const std::string& key, const std::string& value) = 0;
  virtual void remove(const std::string& key) = 0;
};

/// Bytes that go from one rank to all others.
struct HandedPart {
  std::int64_t owner = 0;  ///< the rank that has them
  std::span<std::byte> bytes;
};

/// The ranks that take or restore together. The exchanges are collective: every rank calls the same ones in the same
/// order, from one thread, and never from a background one. One that fails, because a rank is gone or too late, is an
/// Error on the ranks that notice it. The store may be used by any thread.
class Coordinator {
 public:
  virtual ~Coordinator() = default;
  Coordinator() = default;
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  [[nodiscard]] virtual std::int64_t rank() const = 0;
  [[nodiscard]] virtual std::int64_t world_size() const = 0;

  /// Rank 0's bytes, on every rank.
  virtual std::string broadcast(const std::string& bytes) = 0;
  /// The bytes of every rank, by rank, on every rank. No rank passes more than `limit`, which all pass alike.
  virtual std::vector<std::string> all_gather(const std::string& bytes, std::size_t limit) = 0;
  /// The bytes of every rank, by rank, on rank 0; nothing on the others.
  virtual std::vector<std::string> gather(const std::string& bytes) = 0;

  virtual KeyValueStore& store() = 0;

  /// True when hand_round() moves large amounts of bytes well: then a restore may read once for all ranks. The same on
  /// all ranks.
  [[nodiscard]] virtual bool can_hand_round() const { return false; }
  /// Fills each part, on all ranks, with its owner's bytes. All ranks pass parts of the same owners and sizes, in the
  /// same order; of no part more than 4 MiB. Called only if can_hand_round().
  virtual void hand_round(std::span<const HandedPart> parts);

  // The exchanges of a program with very many ranks. What they do by default is right, but costs each rank as much as
  // there are ranks; override them where the network has better.

  /// The sum of the numbers of all ranks, place by place, modulo 2^64, on every rank. All pass equally many.
  virtual std::vector<std::uint64_t> all_sum(const std::vector<std::uint64_t>& numbers);
  /// As gather; no rank passes more than `limit`, which all pass alike.
  virtual std::vector<std::string> gather_within(const std::string& bytes, std::size_t limit);
  /// On rank 0 the bytes of these ranks, in this order; nothing on the others. All ranks call it with the same list,
  /// ascending and without rank 0; what a rank that is not in it passes is not looked at.
  virtual std::vector<std::string> gather_from(const std::vector<std::int64_t>& senders, const std::string& bytes);

  /// What takes remember of their plan, so that the next one over the same coordinator need not exchange it again. The
  /// engine's own. Override it where coordinators are made anew for each take.
  virtual std::shared_ptr<TakeMemory>& memory() { return memory_; }

 private:
  std::shared_ptr<TakeMemory> memory_;
};

/// What was exchanged for the plan of a take, as one rank sees it.
struct ExchangeFigures {
  int exchanges = 0;
  std::uint64_t bytes_sent = 0;
  std::uint64_t bytes_received = 0;
};

}  // namespace torchsnapshot
