// A bound on the bytes of buffers in use.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <stop_token>

namespace torchsnapshot {

/// Counts bytes in use against a limit. A request above the whole limit is granted when nothing else is in
/// use, so that work always goes on. First come, first served. Thread-safe.
class MemoryBudget {
 public:
  explicit MemoryBudget(std::uint64_t limit) noexcept : limit_(limit) {}

  /// A share of the budget, given back by its destructor. Move-only.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept;
    Lease& operator=(Lease&& other) noexcept;
    ~Lease();

   private:
    friend class MemoryBudget;
    Lease(MemoryBudget* budget, std::uint64_t bytes) noexcept : budget_(budget), bytes_(bytes) {}
    MemoryBudget* budget_ = nullptr;
    std::uint64_t bytes_ = 0;
  };

  /// Waits for `bytes`. Throws Error(kCancelled) when `stop` is requested meanwhile.
  Lease acquire(std::uint64_t bytes, const std::stop_token& stop);

  [[nodiscard]] std::uint64_t limit() const noexcept { return limit_; }
  /// The most bytes that were in use at once.
  [[nodiscard]] std::uint64_t peak() const;

 private:
  void release(std::uint64_t bytes) noexcept;

  const std::uint64_t limit_;
  mutable std::mutex mutex_;
  std::condition_variable_any freed_;
  std::uint64_t in_use_ = 0;
  std::uint64_t peak_ = 0;
  std::uint64_t next_ticket_ = 0;
  std::uint64_t serving_ = 0;
};

/// 60 % of the memory available to this process (MemAvailable and the cgroup's limit), at most 32 GB,
/// divided by `local_ranks`.
std::uint64_t default_memory_budget(std::uint32_t local_ranks);

}  // namespace torchsnapshot
