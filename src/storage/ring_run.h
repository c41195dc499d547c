// The pieces of one block through a ring, several under way at once.
#pragma once

#include <array>
#include <cstddef>
#include <deque>
#include <exception>
#include <optional>
#include <span>

#include "exec/buffer_pool.h"
#include "storage/fs_mover.h"
#include "storage/ring.h"

namespace torchsnapshot {

/// Keeps a ring full with the pieces of a block. Whatever happens, nothing is under way any more when move() returns:
/// the kernel has let go of the block's memory. For one thread.
class RingRun {
 public:
  RingRun(Ring& ring, PieceMover& mover, BufferPool& bounce) : ring_(ring), mover_(mover), bounce_(bounce) {}

  struct Outcome {
    std::size_t moved = 0;     ///< pieces from the first on that are done; less than all: the ring took no more
    std::exception_ptr error;  ///< the first one
    bool is_broken = false;    ///< the ring must not be used again
    int ring_errno = 0;        ///< why, when it is not only busy
  };
  Outcome move(std::span<const Piece> pieces);

 private:
  struct Slot {
    const Piece* piece = nullptr;  ///< null: free
    std::byte* data = nullptr;
    std::optional<BufferPool::Buffer> bounce;
  };

  void fill();
  bool start(std::size_t slot, const Piece& piece);
  void submit();
  void finish_one();
  RingDone next_done();
  void move_here(std::size_t slot, int result);
  void fail_with_current();

  // Two per thread: one is copied while the other is under way.
  static constexpr std::size_t kMostBounces = 2;

  Ring& ring_;
  PieceMover& mover_;
  BufferPool& bounce_;
  std::span<const Piece> left_;  // pieces not started
  std::array<Slot, TransferPool::kRingDepth> slots_;
  std::deque<std::size_t> queued_;  // slots whose requests the kernel has not taken yet, in order
  std::size_t under_way_ = 0;       // requests that it has
  std::size_t bounces_ = 0;
  Outcome outcome_;
};

}  // namespace torchsnapshot
