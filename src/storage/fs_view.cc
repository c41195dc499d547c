#include "storage/fs_view.h"

#include <unistd.h>

#include <utility>

namespace torchsnapshot {
namespace {

std::uint64_t page_size() noexcept {
  static const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return page;
}

}  // namespace

std::shared_ptr<MappedFile> MappedFile::make(const OpenObject& object, std::uint64_t size) {
  void* data = object.sys->map(object.fd, size);
  if (data == nullptr) return nullptr;
  return std::shared_ptr<MappedFile>(new MappedFile(object.sys, data, size));
}

MappedFile::MappedFile(std::shared_ptr<Sys> sys, void* data, std::size_t size)
    : sys_(std::move(sys)), data_(static_cast<std::byte*>(data)), size_(size) {}

MappedFile::~MappedFile() {
  sys_->unmap(data_, size_);
}

std::optional<SharedBytes> MappedFile::view(const OpenObject& object, std::uint64_t offset, std::size_t size,
                                            bool is_ours) {
  if (cached_bytes(object, offset, size, is_ours) < size) return std::nullopt;
  struct stat info {};
  if (sys_->fstat(object.fd, &info) != 0 || static_cast<std::uint64_t>(info.st_size) < offset + size) {
    return std::nullopt;  // read() says what is wrong
  }
  const std::uint64_t page = page_size();
  const std::uint64_t begin = offset / page * page;
  if (sys_->populate(data_ + begin, offset + size - begin) != 0) return std::nullopt;
  // Pages at the ends may be another view's too.
  const std::uint64_t first = (offset + page - 1) / page * page;
  const std::uint64_t end = (offset + size) / page * page;
  std::shared_ptr<const void> owner(data_, [self = shared_from_this(), first, end](const void*) {
    if (first < end) self->sys_->depopulate(self->data_ + first, end - first);  // only a hint
  });
  return SharedBytes({data_ + offset, size}, std::move(owner));
}

}  // namespace torchsnapshot
