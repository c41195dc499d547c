// Large buffers that are used again while they are warm.
#pragma once

#include <cstddef>
#include <mutex>
#include <span>
#include <vector>

namespace torchsnapshot {

/// Page-aligned buffers of one size, made when needed and kept for the next user: memory that was touched before is
/// several times faster to fill than fresh pages. Huge pages where the system has them and the size is a multiple of
/// theirs. Thread-safe. Outlives its buffers.
class BufferPool {
 public:
  /// `keep`: free buffers kept at most, for the start.
  BufferPool(std::size_t buffer_bytes, std::size_t keep) noexcept : buffer_bytes_(buffer_bytes), keep_(keep) {}
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
  /// From now on at least `buffers` free ones are kept.
  void keep_at_least(std::size_t buffers);
  /// From now on at most `buffers` free ones are kept; the others go back to the system at once.
  void keep_at_most(std::size_t buffers);

  [[nodiscard]] std::size_t buffer_bytes() const noexcept { return buffer_bytes_; }
  /// Buffers that are there, free or on loan.
  [[nodiscard]] std::size_t count() const;
  /// Whether the next buffer is one that was used before (if nobody else takes it).
  [[nodiscard]] bool has_free() const;
  /// Makes one more buffer and touches its pages, so that a later user finds it warm; false when there are as many as
  /// are kept, or there is no memory.
  bool warm_one();
  /// For a pool that lives as long as the process: it can be used in a forked child.
  void survive_fork();

 private:
  void count_one();
  Buffer make();
  [[nodiscard]] std::byte* map() const;
  void give_back(std::byte* data) noexcept;

  const std::size_t buffer_bytes_;
  mutable std::mutex mutex_;
  std::size_t keep_;
  std::size_t count_ = 0;
  std::vector<std::byte*> free_;  ///< with room for all buffers, so that give_back can't fail
};

/// Bytes of the buffers that data passes through between a tensor's memory and storage.
inline constexpr std::size_t kStagingBufferBytes = 4 << 20;

/// The process's buffers of kStagingBufferBytes. It keeps 64 MiB unless told to keep more.
BufferPool& staging_pool();
inline constexpr std::size_t kStagingKeep = (64 << 20) / kStagingBufferBytes;

}  // namespace torchsnapshot
