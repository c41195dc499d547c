// A few chunks of pinned host memory that all copies from and to devices pass through.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <vector>

#include "device/cuda_device.h"

namespace torchsnapshot {

/// Chunks of one size, pinned for every device, made when needed up to a limit, and used again. Thread-safe. Outlives
/// its chunks; the devices outlive it.
class PinnedRing {
 public:
  PinnedRing(std::size_t chunk_bytes, std::size_t limit) noexcept : chunk_bytes_(chunk_bytes), limit_(limit) {}
  ~PinnedRing();
  PinnedRing(const PinnedRing&) = delete;
  PinnedRing& operator=(const PinnedRing&) = delete;

 private:
  struct Memory {
    std::byte* data = nullptr;
    const CudaDevice* device = nullptr;  ///< whose context it was made in
  };

 public:
  /// A chunk on loan; its destructor gives it back, at once. Move-only.
  class Chunk {
   public:
    Chunk(Chunk&& other) noexcept : ring_(std::exchange(other.ring_, nullptr)), memory_(other.memory_) {}
    Chunk& operator=(Chunk&&) = delete;
    ~Chunk();
    [[nodiscard]] std::span<std::byte> span() const noexcept { return {memory_.data, ring_->chunk_bytes_}; }

   private:
    friend class PinnedRing;
    Chunk(PinnedRing* ring, const Memory& memory) noexcept : ring_(ring), memory_(memory) {}
    PinnedRing* ring_;
    Memory memory_;
  };

  /// Waits for a chunk. `device`: whose context is used to make one. Throws Error(kCancelled) on `stop`, and what the
  /// driver says.
  Chunk acquire(const CudaDevice& device, const std::stop_token& stop);
  /// A chunk, if there is one without waiting.
  std::optional<Chunk> try_acquire(const CudaDevice& device);
  /// The chunk may be used again when all of `events` have happened.
  void give_back_after(Chunk chunk, std::vector<CudaEvent> events);
  /// Nobody knows whether a copy still uses the chunk: it is not used again.
  void lose(Chunk chunk);
  /// All copies are over: what was lost is free.
  void find_lost();

  /// At most that many chunks, at least 1, from now on; those in use stay until they are given back.
  void set_limit(std::size_t chunks);
  /// Frees what is not in use.
  void trim();

 private:
  struct Busy {
    Memory memory;
    std::vector<CudaEvent> events;
  };

  /// With the lock: a free chunk, or a place for a new one (no data). Nothing when there is neither.
  std::optional<Memory> take_or_reserve();
  Chunk make(const CudaDevice& device);
  Chunk wait_for(const Busy& busy);
  void give_back(const Memory& memory) noexcept;
  /// With the lock.
  void forget_one() noexcept;

  const std::size_t chunk_bytes_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::size_t limit_;
  std::size_t count_ = 0;  ///< free, busy, on loan
  std::vector<Memory> free_;
  std::deque<Busy> busy_;
  std::vector<Memory> lost_;
};

/// Waits for copies, whatever fails. False when nobody knows whether they are over.
bool settle(const std::vector<CudaEvent>& events) noexcept;

}  // namespace torchsnapshot
