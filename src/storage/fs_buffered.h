// Blocks through the page cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stop_token>
#include <string>

#include "storage/posix.h"

namespace torchsnapshot {

/// An open file, as the functions that move its data see it. They may be called by several threads.
struct OpenObject {
  std::shared_ptr<Sys> sys;
  int fd = -1;  ///< without O_DIRECT; belongs to somebody else
  std::string name;
  std::stop_token stop;
};

/// Writes a block. Its write-back begins early, and a large one has left the page cache when this returns.
void write_buffered(const OpenObject& object, std::uint64_t offset, std::span<const std::byte> data);

/// Reads a block. Throws Error(kCorrupt) where the file ends before.
void read_buffered(const OpenObject& object, std::uint64_t offset, std::span<std::byte> out);

/// Bytes of the range that lie in the page cache; 0 when the kernel doesn't say.
std::uint64_t cached_bytes(const OpenObject& object, std::uint64_t offset, std::size_t size, bool is_ours);

}  // namespace torchsnapshot
