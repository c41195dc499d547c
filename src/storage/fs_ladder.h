// Which way the data of large objects takes on each device: the ladder io_uring + O_DIRECT, threads + O_DIRECT,
// page cache; decided once, and going down only.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "exec/buffer_pool.h"
#include "storage/fs_pieces.h"
#include "storage/posix.h"

namespace torchsnapshot {

/// The storage option "io".
enum class IoMode : std::uint8_t {
  kAuto,      ///< the highest rung that works
  kUring,     ///< this rung, or an error
  kDirect,    ///< this rung, or an error
  kBuffered,  ///< the page cache, always
};

/// Throws Error(kInvalidArgument) that names the values there are.
IoMode parse_io_mode(std::string_view text);

enum class Rung : std::uint8_t { kBuffered, kDirect, kUring };

/// What a rung is called in messages: "io_uring + O_DIRECT".
std::string_view to_string(Rung rung) noexcept;

/// What is known of direct I/O on one device (st_dev).
struct DirectDevice {
  std::atomic<Rung> rung = Rung::kBuffered;
  DirectAlign align;  ///< fixed from the start
};

/// Rings and bounce buffers that are used again, for as long as some large object is open. Thread-safe.
class TransferPool {
 public:
  explicit TransferPool(std::shared_ptr<Sys> sys) noexcept : sys_(std::move(sys)) {}
  ~TransferPool();
  TransferPool(const TransferPool&) = delete;
  TransferPool& operator=(const TransferPool&) = delete;

  /// Most requests in one ring.
  static constexpr unsigned kRingDepth = 8;
  static constexpr std::size_t kBounceBytes = 1 << 20;

  /// A ring for the calling thread; null and errno when there is none to be had.
  std::unique_ptr<Ring> take_ring();
  /// Takes back a ring that is idle.
  void give_back(std::unique_ptr<Ring> ring) noexcept;
  BufferPool& bounce() noexcept { return bounce_; }

 private:
  struct Kept;
  // No lock: one that another thread held when the process forked would stay locked in the child.
  static constexpr std::size_t kMostKept = 64;
  std::atomic<Kept*> kept_[kMostKept] = {};
  std::shared_ptr<Sys> sys_;
  BufferPool bounce_{kBounceBytes};
};

/// The ladder of one storage. Thread-safe.
class FsLadder {
 public:
  /// `name` is the storage's, for messages.
  FsLadder(std::shared_ptr<Sys> sys, IoMode mode, std::string name);

  [[nodiscard]] IoMode mode() const noexcept { return mode_; }
  [[nodiscard]] const std::shared_ptr<Sys>& sys() const noexcept { return sys_; }

  /// The device that the open file is on; the first of its files decides the rung. `path` is the file's. A file that is
  /// being made (`is_new`) may be written over to try it out. Throws Error(kUnsupported) when the rung that the
  /// mode insists on does not work.
  std::shared_ptr<DirectDevice> device_of(int fd, const std::string& path, bool is_new);
  /// Opens the file of `fd` a second time for direct I/O. Not open, with the device fallen, where that is refused.
  FileDescriptor open_direct(DirectDevice& device, int fd, const std::string& path, bool for_write);
  /// The device goes down to `rung`, if it is not there yet, and a notice says why. Throws Error(kUnsupported) when
  /// the mode insists on a higher one.
  void fall(DirectDevice& device, Rung rung, const std::string& why);

  std::shared_ptr<TransferPool> pool();

  /// The rung in use, "" while that is not decided.
  [[nodiscard]] std::string describe() const;
  /// What there is to tell since the last call.
  std::vector<std::string> take_notices();

 private:
  std::shared_ptr<DirectDevice> decide(int fd, const std::string& path, bool is_new);
  bool find_align(DirectDevice& device, int fd, const std::string& path, bool is_new);
  bool try_align(int fd, bool is_new, DirectAlign align) const;

  const std::shared_ptr<Sys> sys_;
  const IoMode mode_;
  const std::string name_;
  mutable std::mutex mutex_;  // guards what follows
  std::vector<std::pair<dev_t, std::shared_ptr<DirectDevice>>> devices_;
  std::vector<std::string> notices_;
  std::weak_ptr<TransferPool> pool_;
  std::mutex decide_mutex_;  // one decision at a time
};

}  // namespace torchsnapshot
