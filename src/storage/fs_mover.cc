#include "storage/fs_mover.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>

#include "storage/object_checks.h"

namespace torchsnapshot {
namespace {

/// The file system took the open with O_DIRECT, but not this transfer.
bool is_refusal(int error) noexcept {
  return error == EINVAL || error == EOPNOTSUPP;
}

/// Not a word about the data: the thread does it instead.
bool is_ring_only(int error) noexcept {
  return error == EAGAIN || error == EINTR || error == ECANCELED || error == ENOMEM || is_refusal(error);
}

}  // namespace

void PieceMover::check_stop() const {
  torchsnapshot::check_stop(object_.stop, is_write_ ? "write" : "read", object_.name);
}

std::byte* PieceMover::start(const Piece& piece, std::byte* bounce) const {
  if (piece.way != Piece::Way::kBounced) return memory_ + piece.at;
  if (is_write_) std::memcpy(bounce, memory_ + piece.at, piece.useful);
  return bounce;
}

RingRequest PieceMover::request(const Piece& piece, std::byte* data, std::uint64_t tag) const {
  return {is_write_, direct_fd_, data, piece.size, static_cast<off_t>(piece.offset), tag};
}

void PieceMover::complete(const Piece& piece, std::byte* data, int result) {
  if (result < 0 && !is_ring_only(-result)) throw_sys_error(-result, is_write_ ? "write" : "read", object_.name);
  const auto moved = static_cast<std::size_t>(std::max(result, 0));
  if (moved < wanted(piece)) {
    // A short transfer goes on at the last multiple of the alignment.
    move_rest(piece, data, moved & ~(device_.align.offset - 1));
    // The thread could do what the ring could not.
    if (result < 0 && is_refusal(-result) && device_.rung == Rung::kUring) {
      ladder_.fall(device_, Rung::kDirect, "a transfer: " + error_text(-result));
    }
  }
  land(piece, data);
}

void PieceMover::move_rest(const Piece& piece, std::byte* data, std::size_t done) {
  while (done < wanted(piece) && device_.rung != Rung::kBuffered) {
    std::byte* rest = data + done;
    const std::size_t size = piece.size - done;
    const auto offset = static_cast<off_t>(piece.offset + done);
    const ssize_t moved = retry_eintr([&] {
      return is_write_ ? object_.sys->pwrite(direct_fd_, rest, size, offset)
                       : object_.sys->pread(direct_fd_, rest, size, offset);
    });
    if (moved < 0) {
      if (!is_refusal(errno)) throw_sys_error(errno, is_write_ ? "write" : "read", object_.name);
      ladder_.fall(device_, Rung::kBuffered, "a transfer: " + error_text(errno));
      break;
    }
    const auto count = static_cast<std::size_t>(moved);
    if (done + count >= wanted(piece)) return;
    const std::size_t whole = count & ~(device_.align.offset - 1);
    if (whole == 0) break;  // the end of a file that shrank, or less than direct I/O can go on from
    done += whole;
  }
  move_rest_buffered(piece, data, done);
}

void PieceMover::move_rest_buffered(const Piece& piece, std::byte* data, std::size_t done) const {
  if (!is_write_) done = std::max(done, piece.skip);  // what is ahead of it is not of this block
  if (done >= wanted(piece)) return;
  const std::span rest(data + done, wanted(piece) - done);
  if (is_write_) {
    write_buffered(object_, piece.offset + done, rest);
  } else {
    read_buffered(object_, piece.offset + done, rest);
  }
}

void PieceMover::land(const Piece& piece, const std::byte* data) const {
  if (!is_write_ && piece.way == Piece::Way::kBounced) {
    std::memcpy(memory_ + piece.at, data + piece.skip, piece.useful);
  }
}

}  // namespace torchsnapshot
