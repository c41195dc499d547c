// A bound on the bytes of buffers in use.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <stop_token>

namespace torchsnapshot {

/// Counts bytes in use against a limit. A request above the whole limit is granted when nothing else is in
/// use, so that work always goes on. First come, first served: a small request waits behind a large one that
/// came before it (acquire_within excepted). Thread-safe. Outlives its leases.
class MemoryBudget {
 public:
  explicit MemoryBudget(std::uint64_t limit) noexcept : limit_(limit) {}
  MemoryBudget(const MemoryBudget&) = delete;
  MemoryBudget& operator=(const MemoryBudget&) = delete;

  /// A share of the budget, given back by its destructor. Move-only; empty (0 bytes) once moved from.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept;
    Lease& operator=(Lease&& other) noexcept;
    ~Lease();

    [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
    /// Takes `bytes`, at most bytes(), out of this one.
    [[nodiscard]] Lease split(std::uint64_t bytes) noexcept {
      bytes_ -= bytes;
      return {budget_, bytes};
    }

   private:
    friend class MemoryBudget;
    Lease(MemoryBudget* budget, std::uint64_t bytes) noexcept : budget_(budget), bytes_(bytes) {}
    MemoryBudget* budget_ = nullptr;
    std::uint64_t bytes_ = 0;
  };

  /// Waits for `bytes`. Throws Error(kCancelled) when `stop` was requested already or is meanwhile; then the
  /// requests behind it move up.
  [[nodiscard]] Lease acquire(std::uint64_t bytes, const std::stop_token& stop);
  /// All of `bytes` at once, if they fit and nobody waits. Empty otherwise.
  [[nodiscard]] Lease try_acquire(std::uint64_t bytes);
  /// As acquire, but comes first, and takes the bytes above the limit once it has waited for `patience`, or at once
  /// while others have done so: for those who must not wait for ever.
  [[nodiscard]] Lease acquire_within(std::uint64_t bytes, std::chrono::milliseconds patience,
                                     const std::stop_token& stop);

  [[nodiscard]] std::uint64_t limit() const;
  /// What is in use already stays so.
  void set_limit(std::uint64_t limit);
  /// Bytes that leases hold now.
  [[nodiscard]] std::uint64_t in_use() const;
  /// The most bytes that were in use at once.
  [[nodiscard]] std::uint64_t peak() const;
  /// Requests that wait now.
  [[nodiscard]] std::size_t waiting() const;

 private:
  [[nodiscard]] bool fits(std::uint64_t bytes) const noexcept;
  Lease grant(std::uint64_t bytes) noexcept;
  void release(std::uint64_t bytes) noexcept;

  std::uint64_t limit_;
  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  std::uint64_t in_use_ = 0;
  std::uint64_t peak_ = 0;
  std::uint64_t next_ticket_ = 0;
  std::deque<std::uint64_t> queue_;  ///< tickets that wait, oldest first; one that is cancelled leaves
};

/// 60 % of the memory available to this process (MemAvailable and the cgroup's limit), divided by
/// `local_ranks` (0 counts as 1); at most 32 GiB and at least 64 MiB.
std::uint64_t default_memory_budget(std::uint32_t local_ranks);

}  // namespace torchsnapshot
