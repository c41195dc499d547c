#include "storage/fs_direct.h"

#include <algorithm>
#include <bit>
#include <exception>
#include <memory>
#include <utility>

#include "storage/fs_mover.h"
#include "storage/ring_run.h"

namespace torchsnapshot {
DirectFile::DirectFile(std::shared_ptr<FsLadder> ladder, std::shared_ptr<DirectDevice> device, FileDescriptor direct)
    : ladder_(std::move(ladder)), device_(std::move(device)), pool_(ladder_->pool()), direct_(std::move(direct)) {}

bool DirectFile::is_worth_it(std::size_t size) const noexcept {
  return size >= ladder_->tuning().least_block && device_->rung != Rung::kBuffered;
}

PieceLimits DirectFile::limits() const noexcept {
  return device_->rung == Rung::kUring ? ladder_->tuning().ring : ladder_->tuning().thread;
}

void DirectFile::write(const OpenObject& object, std::uint64_t offset, std::span<const std::byte> data) {
  if (!is_worth_it(data.size())) return write_buffered(object, offset, data);
  auto pieces = cut_write(offset, std::bit_cast<std::uintptr_t>(data.data()), data.size(), device_->align, limits());
  // The ends, less than a page each. Their write-back waits for fdatasync: another block may add to the same page.
  std::erase_if(pieces, [&](const Piece& piece) {
    if (piece.way != Piece::Way::kBuffered) return false;
    write_fully(*object.sys, object.fd, piece.offset, data.subspan(piece.at, piece.useful), object.name);
    return true;
  });
  // Only read from: a transfer has one kind of pointer for both directions.
  run(object, true, const_cast<std::byte*>(data.data()), pieces);
}

void DirectFile::read(const OpenObject& object, std::uint64_t offset, std::span<std::byte> out) {
  if (!is_worth_it(out.size())) return read_buffered(object, offset, out);
  const auto pieces = cut_read(offset, std::bit_cast<std::uintptr_t>(out.data()), out.size(), device_->align, limits());
  run(object, false, out.data(), pieces);
}

void DirectFile::run(const OpenObject& object, bool is_write, std::byte* memory, std::span<const Piece> pieces) {
  PieceMover mover(*ladder_, *device_, direct_.get(), object, is_write, memory);
  if (device_->rung == Rung::kUring && pieces.size() > 1) {
    if (auto ring = pool_->take_ring()) {
      RingRun run(*ring, mover, *pool_);
      const RingRun::Outcome outcome = run.move(pieces);
      if (!outcome.is_broken) pool_->give_back(std::move(ring));
      if (outcome.error) std::rethrow_exception(outcome.error);
      if (outcome.ring_errno != 0)
        ladder_->fall(*device_, Rung::kDirect, "io_uring_enter: " + error_text(outcome.ring_errno));
      pieces = pieces.subspan(outcome.moved);
    } else {
      ladder_->fall(*device_, Rung::kDirect, "io_uring_setup: " + error_text(errno));
    }
  }
  for (const Piece& piece : pieces) {
    mover.check_stop();
    std::unique_ptr<TransferPool::Bounce> bounce;
    if (piece.way == Piece::Way::kBounced) bounce = pool_->take_bounce(piece.size, /*may_wait=*/true);
    std::byte* data = mover.start(piece, bounce ? bounce->data() : nullptr);
    mover.move_rest(piece, data, 0);
    mover.land(piece, data);
  }
}

}  // namespace torchsnapshot
