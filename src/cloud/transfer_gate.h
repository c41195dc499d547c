// How many bodies move at once. A request to a store far away waits longer for its answer than it moves bytes: in that
// time others move theirs.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <stop_token>
#include <utility>

namespace torchsnapshot {

/// Lets a number of transfers pass at once. Thread-safe.
class TransferGate {
 public:
  /// A place in the gate; given back by release() or the destructor.
  class Place {
   public:
    Place() = default;
    Place(Place&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
    Place& operator=(Place&& other) noexcept {
      if (this != &other) {
        release();
        gate_ = std::exchange(other.gate_, nullptr);
      }
      return *this;
    }
    ~Place() { release(); }
    void release() noexcept {
      if (gate_ != nullptr) std::exchange(gate_, nullptr)->leave();
    }

   private:
    friend class TransferGate;
    explicit Place(TransferGate* gate) : gate_(gate) {}
    TransferGate* gate_ = nullptr;
  };

  /// 0, and what it begins with: any number.
  void set_limit(std::size_t limit);
  /// Waits for a place, but not longer than `most`: then, and when stopped, the transfer goes on all the same. A server
  /// whose answer nobody takes might hang up, and the limit is for speed only.
  Place enter(const std::stop_token& stop, std::chrono::milliseconds most);

 private:
  void leave() noexcept;

  std::mutex mutex_;
  std::condition_variable_any freed_;
  std::size_t limit_ = 0;  // guarded by mutex_, as is the next
  std::size_t inside_ = 0;
};

}  // namespace torchsnapshot
