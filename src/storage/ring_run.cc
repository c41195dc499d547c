#include "storage/ring_run.h"

#include <cerrno>
#include <chrono>
#include <thread>

namespace torchsnapshot {

// 1. Start pieces while there are free slots. 2. Hand them to the kernel. 3. Wait for one and complete it. An error
// or a broken ring ends step 1; steps 2 and 3 go on until nothing is under way.
RingRun::Outcome RingRun::move(std::span<const Piece> pieces) {
  left_ = pieces;
  while (true) {
    fill();
    submit();
    if (under_way_ == 0 && (queued_.empty() || outcome_.is_broken)) break;
    if (under_way_ > 0) finish_one();
  }
  // What the kernel never took goes down with the ring; this thread moves it.
  for (const std::size_t slot : queued_) move_here(slot, -EAGAIN);
  queued_.clear();
  outcome_.moved = pieces.size() - left_.size();
  return outcome_;
}

void RingRun::fill() {
  for (std::size_t slot = 0; slot < slots_.size() && !left_.empty(); ++slot) {
    if (slots_[slot].piece != nullptr) continue;
    if (outcome_.error || outcome_.is_broken || !start(slot, left_.front())) return;
    left_ = left_.subspan(1);
  }
}

bool RingRun::start(std::size_t slot, const Piece& piece) {
  Slot& here = slots_[slot];
  try {
    mover_.check_stop();
    if (piece.way == Piece::Way::kBounced) {
      here.bounce = pool_.take_bounce(piece.size, /*may_wait=*/large_bounces_ == 0);
      if (!here.bounce) return false;  // after one of our own has ended
      if (here.bounce->is_large()) ++large_bounces_;
    }
    here.data = mover_.start(piece, here.bounce ? here.bounce->data() : nullptr);
    queued_.push_back(slot);
  } catch (...) {
    free_slot(slot);
    fail_with_current();
    return false;
  }
  if (!ring_.push(mover_.request(piece, here.data, slot))) {
    queued_.pop_back();
    free_slot(slot);
    outcome_.is_broken = true;  // there is room for all slots
    return false;
  }
  here.piece = &piece;
  return true;
}

void RingRun::free_slot(std::size_t slot) noexcept {
  if (slots_[slot].bounce && slots_[slot].bounce->is_large()) --large_bounces_;
  slots_[slot] = {};
}

void RingRun::submit() {
  while (!queued_.empty() && !outcome_.is_broken) {
    const int taken = ring_.submit();
    if (taken > 0) {
      for (int i = 0; i < taken && !queued_.empty(); ++i) {
        queued_.pop_front();
        ++under_way_;
      }
      continue;
    }
    if (taken < 0 && errno == EINTR) continue;
    const bool is_busy = taken == 0 || errno == EAGAIN || errno == EBUSY || errno == ENOMEM;
    if (is_busy && under_way_ > 0) return;  // again when one has ended
    outcome_.is_broken = true;
    if (!is_busy) outcome_.ring_errno = errno;
  }
}

void RingRun::finish_one() {
  const RingDone done = next_done();
  --under_way_;
  move_here(done.tag, done.result);
}

RingDone RingRun::next_done() {
  while (true) {
    if (const auto done = ring_.pop()) return *done;
    if (ring_.wait() == 0 || errno == EINTR) continue;
    // Waiting doesn't work, but what is under way ends all the same, and only then may the memory be let go.
    outcome_.is_broken = true;
    outcome_.ring_errno = errno;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void RingRun::move_here(std::size_t slot, int result) {
  const Slot& here = slots_[slot];
  try {
    if (!outcome_.error) mover_.complete(*here.piece, here.data, result);
  } catch (...) {
    fail_with_current();
  }
  free_slot(slot);
}

void RingRun::fail_with_current() {
  if (!outcome_.error) outcome_.error = std::current_exception();
}

}  // namespace torchsnapshot
