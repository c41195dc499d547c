// The pieces of one block through a ring, several under way at once.
#pragma once

#include <array>
#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <span>

#include "storage/fs_mover.h"
#include "storage/ring.h"
#include "storage/transfer_pool.h"

namespace torchsnapshot {

/// Keeps a ring full with the pieces of a block. Whatever happens, nothing is under way any more when move() returns:
/// the kernel has let go of the block's memory. For one thread.
class RingRun {
 public:
  RingRun(Ring& ring, PieceMover& mover, TransferPool& pool) : ring_(ring), mover_(mover), pool_(pool) {}

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
    std::unique_ptr<TransferPool::Bounce> bounce;
  };

  void fill();
  bool start(std::size_t slot, const Piece& piece);
  void free_slot(std::size_t slot) noexcept;
  void submit();
  void finish_one();
  RingDone next_done();
  void move_here(std::size_t slot, int result);
  void fail_with_current();

  Ring& ring_;
  PieceMover& mover_;
  TransferPool& pool_;
  std::span<const Piece> left_;  // pieces not started
  std::array<Slot, TransferPool::kRingDepth> slots_;
  std::deque<std::size_t> queued_;  // slots whose requests the kernel has not taken yet, in order
  std::size_t under_way_ = 0;       // requests that it has
  std::size_t large_bounces_ = 0;   // that it holds
  Outcome outcome_;
};

}  // namespace torchsnapshot
