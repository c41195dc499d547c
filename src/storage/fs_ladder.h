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

#include "storage/fs_pieces.h"
#include "storage/posix.h"
#include "storage/transfer_pool.h"

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

/// From which sizes on, and in which pieces, data moves directly (docs/performance.md has the measurements). Tests make
/// them small.
struct FsTuning {
  IoMode mode = IoMode::kAuto;
  std::uint64_t least_object = 256 << 10;  ///< smaller objects (metadata, None) only go through the page cache
  std::size_t least_block = 128 << 10;     ///< and so do smaller blocks
  PieceLimits ring{4 << 20, TransferPool::kBounceBytes};     ///< a thread has several pieces of a block under way
  PieceLimits thread{16 << 20, TransferPool::kBounceBytes};  ///< a thread has one under way
  std::size_t least_view = 128 << 10;  ///< smaller parts are copied from the page cache, not mapped
  std::size_t cache_window = 4 << 20;  ///< whether data is in the page cache is asked for so much of it at a time
};

enum class Rung : std::uint8_t { kBuffered, kDirect, kUring };

/// What a rung is called in messages: "io_uring + O_DIRECT".
std::string_view to_string(Rung rung) noexcept;

/// What is known of direct I/O on one device (st_dev).
struct DirectDevice {
  std::atomic<Rung> rung = Rung::kBuffered;
  DirectAlign align;  ///< fixed from the start
};

/// The ladder of one storage. Thread-safe.
class FsLadder {
 public:
  /// `name` is the storage's, for messages.
  FsLadder(std::shared_ptr<Sys> sys, const FsTuning& tuning, std::string name);

  [[nodiscard]] const FsTuning& tuning() const noexcept { return tuning_; }
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

  /// What transfers work with. There is one for all objects that are open in this process.
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
  const FsTuning tuning_;
  const std::string name_;
  mutable std::mutex mutex_;  // guards what follows
  std::vector<std::pair<dev_t, std::shared_ptr<DirectDevice>>> devices_;
  std::vector<std::string> notices_;
  std::weak_ptr<TransferPool> pool_;
  pid_t pool_owner_ = 0;
  std::mutex decide_mutex_;  // one decision at a time
};

}  // namespace torchsnapshot
