#include "exec/buffer_pool.h"

#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "torchsnapshot/error.h"

namespace torchsnapshot {

BufferPool::~BufferPool() {
  for (std::byte* data : free_) ::munmap(data, buffer_bytes_);
}

BufferPool::Buffer BufferPool::acquire() {
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      std::byte* data = free_.back();
      free_.pop_back();
      return {this, data, buffer_bytes_};
    }
    // Room to take it back, so that give_back can't fail.
    free_.reserve(free_.capacity() + 1);
  }
  void* data = ::mmap(nullptr, buffer_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw errno_error(errno, "mmap of a staging buffer");
  ::madvise(data, buffer_bytes_, MADV_HUGEPAGE);  // fewer page faults; no harm where it is refused
  return {this, static_cast<std::byte*>(data), buffer_bytes_};
}

void BufferPool::give_back(std::byte* data) noexcept {
  const std::lock_guard lock(mutex_);
  free_.push_back(data);
}

BufferPool::Buffer::Buffer(Buffer&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), data_(other.data_), size_(other.size_) {}

BufferPool::Buffer::~Buffer() {
  if (pool_ != nullptr) pool_->give_back(data_);
}

}  // namespace torchsnapshot
