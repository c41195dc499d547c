#include "storage/fs_direct.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "storage/fs_mover.h"
#include "storage/ring_run.h"

namespace torchsnapshot {
namespace {

// One thread has several pieces of a block under way in a ring, or one at a time without (docs/performance.md).
constexpr PieceLimits kRingLimits{4 << 20, TransferPool::kBounceBytes};
constexpr PieceLimits kThreadLimits{16 << 20, TransferPool::kBounceBytes};

}  // namespace

DirectFile::DirectFile(std::shared_ptr<FsLadder> ladder, std::shared_ptr<DirectDevice> device, FileDescriptor direct)
    : ladder_(std::move(ladder)), device_(std::move(device)), pool_(ladder_->pool()), direct_(std::move(direct)) {}

void DirectFile::write(const OpenObject& object, std::uint64_t offset, std::span<const std::byte> data) {
  const Rung rung = device_->rung;
  if (data.size() < kLeastBytes || rung == Rung::kBuffered) return write_buffered(object, offset, data);
  auto pieces = cut_write(offset, std::bit_cast<std::uintptr_t>(data.data()), data.size(), device_->align,
                          rung == Rung::kUring ? kRingLimits : kThreadLimits);
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
  const Rung rung = device_->rung;
  if (out.size() < kLeastBytes || rung == Rung::kBuffered) return read_buffered(object, offset, out);
  const auto pieces = cut_read(offset, std::bit_cast<std::uintptr_t>(out.data()), out.size(), device_->align,
                               rung == Rung::kUring ? kRingLimits : kThreadLimits);
  run(object, false, out.data(), pieces);
}

void DirectFile::run(const OpenObject& object, bool is_write, std::byte* memory, std::span<const Piece> pieces) {
  PieceMover mover(*ladder_, *device_, direct_.get(), object, is_write, memory);
  if (device_->rung == Rung::kUring && pieces.size() > 1) {
    if (auto ring = pool_->take_ring()) {
      RingRun run(*ring, mover, pool_->bounce());
      const RingRun::Outcome outcome = run.move(pieces);
      if (!outcome.is_broken) pool_->give_back(std::move(ring));
      if (outcome.error) std::rethrow_exception(outcome.error);
      if (outcome.ring_errno != 0) ladder_->fall(*device_, Rung::kDirect, "io_uring_enter: " + error_text(outcome.ring_errno));
      pieces = pieces.subspan(outcome.moved);
    } else {
      ladder_->fall(*device_, Rung::kDirect, "io_uring_setup: " + error_text(errno));
    }
  }
  std::optional<BufferPool::Buffer> bounce;
  for (const Piece& piece : pieces) {
    mover.check_stop();
    if (piece.way == Piece::Way::kBounced && !bounce) bounce.emplace(pool_->bounce().acquire());
    std::byte* data = mover.start(piece, bounce ? bounce->span() : std::span<std::byte>());
    mover.move_rest(piece, data, 0);
    mover.land(piece, data);
  }
}

}  // namespace torchsnapshot
