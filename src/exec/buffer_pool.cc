#include "exec/buffer_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <utility>

#include "exec/fork_lock.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::size_t kHugePage = 2 << 20;

}  // namespace

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
    count_one();
  }
  return make();
}

bool BufferPool::warm_one() {
  {
    const std::lock_guard lock(mutex_);
    if (count_ >= keep_) return false;
    count_one();
  }
  try {
    const Buffer buffer = make();
    constexpr std::size_t kSmallPage = 4096;
    for (std::size_t at = 0; at < buffer_bytes_; at += kSmallPage) buffer.span()[at] = std::byte{};
    return true;
  } catch (const Error&) {
    return false;
  }
}

void BufferPool::count_one() {
  if (free_.capacity() == count_) free_.reserve(std::max<std::size_t>(16, 2 * count_));
  ++count_;
}

BufferPool::Buffer BufferPool::make() {
  try {
    return {this, map(), buffer_bytes_};
  } catch (...) {
    const std::lock_guard lock(mutex_);
    --count_;
    throw;
  }
}

std::byte* BufferPool::map() const {
  // A huge page has to begin at a multiple of its size: map more, and give back what lies before and behind.
  const std::size_t extra = buffer_bytes_ % kHugePage == 0 ? kHugePage : 0;
  void* mapped = ::mmap(nullptr, buffer_bytes_ + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw errno_error(errno, "mmap of a staging buffer");
  auto* data = static_cast<std::byte*>(mapped);
  if (extra != 0) {
    const std::size_t before = (kHugePage - reinterpret_cast<std::uintptr_t>(data) % kHugePage) % kHugePage;
    if (before != 0) ::munmap(data, before);
    data += before;
    if (before != extra) ::munmap(data + buffer_bytes_, extra - before);
    ::madvise(data, buffer_bytes_, MADV_HUGEPAGE);  // no harm where it is refused
  }
  return data;
}

void BufferPool::give_back(std::byte* data) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (free_.size() < keep_) {
      free_.push_back(data);
      return;
    }
    --count_;
  }
  ::munmap(data, buffer_bytes_);
}

void BufferPool::keep_at_least(std::size_t buffers) {
  const std::lock_guard lock(mutex_);
  keep_ = std::max(keep_, buffers);
}

void BufferPool::keep_at_most(std::size_t buffers) {
  const std::lock_guard lock(mutex_);
  keep_ = std::min(keep_, buffers);
  for (; free_.size() > keep_; free_.pop_back(), --count_) ::munmap(free_.back(), buffer_bytes_);
}

std::size_t BufferPool::count() const {
  const std::lock_guard lock(mutex_);
  return count_;
}

bool BufferPool::has_free() const {
  const std::lock_guard lock(mutex_);
  return !free_.empty();
}

void BufferPool::survive_fork() {
  lock_over_fork(mutex_);
}

BufferPool::Buffer::Buffer(Buffer&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), data_(other.data_), size_(other.size_) {}

BufferPool::Buffer::~Buffer() {
  if (pool_ != nullptr) pool_->give_back(data_);
}

BufferPool& staging_pool() {
  // Never destroyed: threads of a pending take may still use it when static objects go.
  static BufferPool* pool = [] {
    auto* made = new BufferPool(kStagingBufferBytes, kStagingKeep);
    made->survive_fork();
    return made;
  }();
  return *pool;
}

}  // namespace torchsnapshot
