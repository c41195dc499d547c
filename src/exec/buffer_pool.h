// Large buffers that are used again while they are warm.
#pragma once

#include <cstddef>
#include <mutex>
#include <span>
#include <vector>

namespace torchsnapshot {

/// Page-aligned buffers of one size, made when needed and kept for the next user: memory that was touched before is
/// several times faster to fill than fresh pages. Thread-safe. Outlives its buffers.
class BufferPool {
 public:
  explicit BufferPool(std::size_t buffer_bytes) noexcept : buffer_bytes_(buffer_bytes) {}
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  /// A buffer on loan; its destructor gives it back. Move-only. The content is undefined.
  class Buffer {
   public:
    Buffer(Buffer&& other) noexcept;
    Buffer& operator=(Buffer&&) = delete;
    ~Buffer();
    [[nodiscard]] std::span<std::byte> span() const noexcept { return {data_, size_}; }

   private:
    friend class BufferPool;
    Buffer(BufferPool* pool, std::byte* data, std::size_t size) noexcept : pool_(pool), data_(data), size_(size) {}
    BufferPool* pool_;
    std::byte* data_;
    std::size_t size_;
  };

  /// Throws Error(kNoSpace) when there is no memory.
  Buffer acquire();

 private:
  void give_back(std::byte* data) noexcept;

  const std::size_t buffer_bytes_;
  std::mutex mutex_;
  std::vector<std::byte*> free_;
};

}  // namespace torchsnapshot
