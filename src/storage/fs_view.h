// Cached bytes of a file where they lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "storage/fs_buffered.h"
#include "torchsnapshot/bytes.h"

namespace torchsnapshot {

/// A file mapped to be looked at, as a whole and once: views come and go without the lock of the address space being
/// taken for writing, for which all threads would wait. Thread-safe.
class MappedFile : public std::enable_shared_from_this<MappedFile> {
 public:
  /// Null when it can't be mapped.
  static std::shared_ptr<MappedFile> make(const OpenObject& object, std::uint64_t size);
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  /// The bytes of a range that is wholly in the page cache; nothing where it is not. The caller has seen that the file
  /// is of a local file system (Sys::is_local) and may be asked about (`is_ours`, as for cached_bytes). Mapped memory
  /// has no errors, only SIGBUS: so the pages are there before anybody looks, and what is left is a file that somebody
  /// cuts off within the milliseconds that a view is used. The view keeps the mapping; its pages go with it.
  std::optional<SharedBytes> view(const OpenObject& object, std::uint64_t offset, std::size_t size, bool is_ours);

 private:
  MappedFile(std::shared_ptr<Sys> sys, void* data, std::size_t size);

  const std::shared_ptr<Sys> sys_;
  std::byte* const data_;
  const std::size_t size_;
};

}  // namespace torchsnapshot
