#include "storage/fs_view.h"

#include <unistd.h>

#include <memory>
#include <span>

namespace torchsnapshot {

std::optional<SharedBytes> view_cached(const OpenObject& object, std::uint64_t offset, std::size_t size, bool is_ours) {
  static const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  if (cached_bytes(object, offset, size, is_ours) < size) return std::nullopt;
  struct stat info {};
  if (object.sys->fstat(object.fd, &info) != 0 || static_cast<std::uint64_t>(info.st_size) < offset + size) {
    return std::nullopt;  // read() says what is wrong
  }
  const std::uint64_t before = offset % page;
  const std::size_t length = size + before;
  void* data = object.sys->map(object.fd, static_cast<off_t>(offset - before), length);
  if (data == nullptr) return std::nullopt;
  std::shared_ptr<const void> owner(data, [sys = object.sys, length](void* mapped) { sys->unmap(mapped, length); });
  return SharedBytes({static_cast<const std::byte*>(data) + before, size}, std::move(owner));
}

}  // namespace torchsnapshot
