// Blocks by direct I/O: between the caller's memory and the disk, without the page cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "storage/fs_buffered.h"
#include "storage/fs_ladder.h"
#include "storage/posix.h"

namespace torchsnapshot {

/// An object that is open for direct I/O too. Whatever part of a block can't go directly goes through the page cache;
/// the bytes are right either way. Thread-safe.
class DirectFile {
 public:
  /// `direct`: the same file, opened with O_DIRECT.
  DirectFile(std::shared_ptr<FsLadder> ladder, std::shared_ptr<DirectDevice> device, FileDescriptor direct);

  /// As write_buffered and read_buffered.
  void write(const OpenObject& object, std::uint64_t offset, std::span<const std::byte> data);
  void read(const OpenObject& object, std::uint64_t offset, std::span<std::byte> out);

 private:
  [[nodiscard]] bool is_worth_it(std::size_t size) const noexcept;
  [[nodiscard]] PieceLimits limits() const noexcept;
  void run(const OpenObject& object, bool is_write, std::byte* memory, std::span<const Piece> pieces);

  std::shared_ptr<FsLadder> ladder_;
  std::shared_ptr<DirectDevice> device_;
  std::shared_ptr<TransferPool> pool_;
  FileDescriptor direct_;
};

}  // namespace torchsnapshot
