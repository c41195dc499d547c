// One piece of a block at a time, whatever its transfer says.
#pragma once

#include <cstddef>
#include <cstdint>

#include "storage/fs_buffered.h"
#include "storage/fs_ladder.h"
#include "storage/fs_pieces.h"
#include "storage/ring.h"

namespace torchsnapshot {

/// Moves direct pieces of one block between its memory and a file. For one thread.
class PieceMover {
 public:
  PieceMover(FsLadder& ladder, DirectDevice& device, int direct_fd, const OpenObject& object, bool is_write,
             std::byte* memory)
      : ladder_(ladder),
        device_(device),
        direct_fd_(direct_fd),
        object_(object),
        is_write_(is_write),
        memory_(memory) {}

  /// Throws Error(kCancelled) when a stop was requested.
  void check_stop() const;

  /// The memory that the piece's transfer uses: the block's, or `bounce`, filled when this is a write.
  std::byte* start(const Piece& piece, std::byte* bounce) const;
  /// The request for the whole piece.
  [[nodiscard]] RingRequest request(const Piece& piece, std::byte* data, std::uint64_t tag) const;
  /// Completes a piece of which a ring said that `result` bytes were moved, or -errno. Throws what is an error.
  void complete(const Piece& piece, std::byte* data, int result);
  /// Moves what follows the first `done` bytes of the transfer, with the calling thread: directly as far as that goes,
  /// the rest through the page cache.
  void move_rest(const Piece& piece, std::byte* data, std::size_t done);
  /// Brings what was read to the block, if it went through a bounce buffer.
  void land(const Piece& piece, const std::byte* data) const;

 private:
  /// How much of the transfer must have been moved; a read may go past the end of the file.
  [[nodiscard]] std::size_t wanted(const Piece& piece) const noexcept {
    return is_write_ ? piece.size : piece.skip + piece.useful;
  }
  void move_rest_buffered(const Piece& piece, std::byte* data, std::size_t done) const;

  FsLadder& ladder_;
  DirectDevice& device_;
  const int direct_fd_;
  const OpenObject& object_;
  const bool is_write_;
  std::byte* const memory_;
};

}  // namespace torchsnapshot
