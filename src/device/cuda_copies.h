// Copies between tensors on CUDA devices and the host.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <vector>

#include "device/cuda_device.h"
#include "device/pinned_ring.h"
#include "exec/buffer_pool.h"
#include "torchsnapshot/tensor.h"

namespace torchsnapshot {

/// Copies on streams of our own, through pinned chunks. They come after what a program has queued before when the
/// caller says so (order_after), and what it queues later comes after them (order_before). Devices are opened when they
/// are first needed. Views are of DeviceType::kCuda. Thread-safe. Errors name the driver's function, the device and the
/// CUresult.
class CudaCopies {
 public:
  /// The most bytes of one chunk, and so of one to_host or to_device: those of a staged block.
  static constexpr std::size_t kChunkBytes = kStagingBufferBytes;
  static constexpr std::size_t kMaxChunks = 16;

  explicit CudaCopies(const CudaDriver& driver) : driver_(driver), ring_(kChunkBytes, kMaxChunks) {}
  ~CudaCopies();
  CudaCopies(const CudaCopies&) = delete;
  CudaCopies& operator=(const CudaCopies&) = delete;

  /// Bytes `begin` to begin + size of a view's elements, to byte `at` of a chunk; whole elements.
  struct Part {
    const TensorView* view = nullptr;
    std::uint64_t begin = 0;
    std::uint64_t size = 0;
    std::uint64_t at = 0;
  };

  /// Copies that are queued, into one chunk. Move-only. The destructor waits for them.
  class ToHost {
   public:
    ToHost(ToHost&& other) noexcept = default;
    ToHost& operator=(ToHost&&) = delete;
    ~ToHost();
    /// Waits for the copies; then the chunk holds the parts until the end of this.
    [[nodiscard]] std::span<const std::byte> wait();

   private:
    friend class CudaCopies;
    ToHost(PinnedRing& ring, PinnedRing::Chunk chunk) : ring_(ring), chunk_(std::move(chunk)) {}
    void give_up() noexcept;
    PinnedRing& ring_;
    PinnedRing::Chunk chunk_;
    std::vector<CudaEvent> events_;
  };

  /// All copies that are queued from now on wait for what is queued on `streams` now. By the thread that uses them:
  /// a per-thread default stream is another one elsewhere.
  void order_after(std::span<const DeviceStream> streams);
  /// What is queued on `streams` from now on waits for the copies to the host that are queued so far, on all devices.
  void order_before(std::span<const DeviceStream> streams);

  /// Queues copies to the host; waits for a chunk to come free if need be. `parts` don't overlap in the chunk.
  ToHost to_host(std::span<const Part> parts, const std::stop_token& stop);
  /// The same, or nothing when it would have to wait.
  std::optional<ToHost> try_to_host(std::span<const Part> parts);
  /// Queues the copy of `in` to the bytes from `begin` on of a view's elements; `in` may change when it returns.
  void to_device(std::span<const std::byte> in, std::uint64_t begin, const TensorView& view,
                 const std::stop_token& stop);
  /// Waits until all that was queued to the devices of `streams` is there; also when it throws, if the driver can tell.
  void wait_to_device(std::span<const DeviceStream> streams);

  /// At most that many chunks (1 to kMaxChunks) from now on.
  void set_limit(std::size_t chunks) { ring_.set_limit(std::min(chunks, kMaxChunks)); }
  /// Gives the chunks that are not in use back to the system.
  void release_memory() { ring_.trim(); }

 private:
  CudaDevice& device(int index);
  std::vector<CudaDevice*> devices();
  ToHost queue(PinnedRing::Chunk chunk, std::span<const Part> parts);

  const CudaDriver driver_;
  std::mutex mutex_;
  std::map<int, std::unique_ptr<CudaDevice>> devices_;
  PinnedRing ring_;  ///< after the devices: its memory was made in their contexts
};

/// This process's. Throws Error(kUnsupported) with the remedy where there is no driver, and in a forked child, where
/// CUDA does not work. Never destroyed: takes may be pending at the end of the program.
CudaCopies& cuda_copies();
/// Frees what it holds, if it was used. For tests, when nothing is under way.
void close_cuda_copies();
/// CudaCopies::release_memory, if it was used.
void release_pinned_memory();

}  // namespace torchsnapshot
