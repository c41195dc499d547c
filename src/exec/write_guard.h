// Memory that stays as it is until it is released: who writes to it is held up first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

struct uffd_msg;

namespace torchsnapshot {

/// Write-protects pages of this process by userfaultfd. A thread that writes to one sleeps until it is released; so
/// does a system call that does (read() into the pages), where the kernel lets this process stop its system calls. A
/// forked child has the same memory without the protection. Devices that write by DMA are not stopped: such memory must
/// not be protected. The pages stay mapped until they are released.
class WriteGuard {
 public:
  /// How much of the kernel to use. The defaults take what there is.
  struct Limits {
    /// Also where the kernel would fail system calls that write to protected pages (EFAULT) instead of holding them up.
    bool user_faults = false;
    bool no_unpopulated = false;   ///< for tests: as on Linux before 6.4
    bool no_system_calls = false;  ///< for tests: as without the privilege to stop system calls
  };
  struct Observer {
    /// A thread waits to write to `page`, until release() is called for it. Runs on a thread of the guard.
    std::function<void(const std::byte* page)> on_write;
    /// Protected memory was unmapped or emptied: its content is gone. Runs on a thread of the guard, a moment after
    /// is_lost() says so.
    std::function<void(std::span<const std::byte> range)> on_lost;
  };
  struct Attempt {
    std::unique_ptr<WriteGuard> guard;  ///< null where it is not possible
    std::string why_not;                ///< for people, with the remedy
  };

  /// Observers must not throw, nor unmap protected memory.
  static Attempt make(const Limits& limits, Observer observer);
  ~WriteGuard();  ///< stops
  WriteGuard(const WriteGuard&) = delete;
  WriteGuard& operator=(const WriteGuard&) = delete;

  /// Protects whole pages. False where the kernel does not allow it, or while protected memory is emptied or unmapped
  /// without a pause; then nothing is protected. Thread-safe.
  bool protect(std::span<const std::byte> pages);
  /// Lifts the protection, and wakes who waits. Any part of what was protected, also twice. Thread-safe.
  void release(std::span<const std::byte> pages) const noexcept;
  /// Releases what it has of `pages`, for good: another guard may have them. Thread-safe.
  void give_up(std::span<const std::byte> pages) noexcept;
  /// Whether any of `pages` was unmapped or emptied. If not, what was read of them before this call is what was there:
  /// memory is emptied only after the message about it is taken, which is_lost() knows of. Thread-safe.
  [[nodiscard]] bool is_lost(std::span<const std::byte> pages) const;
  /// Releases everything, for good. The observers are not called any more when it returns. One owner thread.
  void stop() noexcept;

 private:
  WriteGuard(int descriptor, bool populates, Observer observer);
  void watch() noexcept;
  void handle_events() noexcept;
  bool next_event(uffd_msg& message, std::span<const std::byte>& lost) noexcept;

  int descriptor_;
  int stop_event_;
  bool populates_;  ///< pages have to be there to be protected
  Observer observer_;
  std::mutex mutex_;
  std::vector<std::span<const std::byte>> ranges_;  ///< guarded by mutex_; empty once stopped
  mutable std::mutex lost_mutex_;                   ///< held while a message is taken
  std::vector<std::span<const std::byte>> lost_;
  std::vector<std::jthread> threads_;
};

/// Half-open ranges of addresses, ascending, of memory that belongs to this process alone: writable, private, without a
/// file, by the text of /proc/self/maps. Adjacent ones are joined.
struct AddressRange {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
  friend bool operator==(const AddressRange&, const AddressRange&) = default;
};
std::vector<AddressRange> private_memory(std::string_view maps);
/// That of this process, now.
std::vector<AddressRange> private_memory();
/// Whether one of `ranges` has all of `memory`.
bool is_within(std::span<const std::byte> memory, const std::vector<AddressRange>& ranges) noexcept;

}  // namespace torchsnapshot
