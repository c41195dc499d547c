#include "exec/write_guard.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "exec/fork_lock.h"
#include "torchsnapshot/error.h"

// What the headers of older systems lack.
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1ULL << 13)
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace torchsnapshot {
namespace {

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

constexpr std::uint64_t kWanted = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMOVE;

/// How long to try again while the memory map is changing. A message that is taken at once ends that; a thread that
/// empties or unmaps protected memory without a pause may not.
constexpr std::chrono::milliseconds kPatience(100);

/// Sets or lifts the protection. Returns 0, or the reason, EAGAIN when the memory map went on changing.
int write_protect(int descriptor, uffdio_writeprotect protection) noexcept {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (::ioctl(descriptor, UFFDIO_WRITEPROTECT, &protection) != 0) {
    if (errno != EAGAIN || std::chrono::steady_clock::now() > deadline) return errno;
    std::this_thread::yield();  // to who takes the message
  }
  return 0;
}

uffdio_range range_of(std::span<const std::byte> pages) noexcept {
  return {.start = reinterpret_cast<std::uintptr_t>(pages.data()), .len = pages.size()};
}

/// A descriptor that may stop system calls, or -1. The device comes first: its file mode says who may.
int open_full() noexcept {
  const int device = ::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device >= 0) {
    const int made = ::ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    ::close(device);
    if (made >= 0) return made;
  }
  return static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
}

int open_for_user_faults() noexcept {
  return static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
}

/// The features that the kernel has, as a descriptor tells once; 0 if it does not speak to us.
std::uint64_t features_of(int descriptor) noexcept {
  uffdio_api api{.api = UFFD_API, .features = 0, .ioctls = 0};
  return ::ioctl(descriptor, UFFDIO_API, &api) == 0 ? api.features : 0;
}

/// Descriptors of this process's guards. A forked child closes its copies: they would keep its parent's memory
/// protected after the parent has closed its own.
struct Descriptors {
  std::mutex mutex;
  std::vector<int> open;
};

Descriptors& descriptors() {
  // Never destroyed: guards may be there when static objects go.
  static Descriptors* all = [] {
    auto* made = new Descriptors;
    lock_over_fork(made->mutex);
    pthread_atfork(nullptr, nullptr, [] {
      for (const int descriptor : descriptors().open) ::close(descriptor);
      descriptors().open.clear();
    });
    return made;
  }();
  return *all;
}

/// The number in front of `end`, in hex.
bool read_hex(std::string_view& text, char end, std::uintptr_t& value) noexcept {
  value = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == end) {
      text.remove_prefix(i + 1);
      return i > 0;
    }
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (digit < 0) return false;
    value = value << 4U | static_cast<std::uintptr_t>(digit);
  }
  return false;
}

}  // namespace

WriteGuard::Attempt WriteGuard::make(const Limits& limits, Observer observer) {
  if (kThreadSanitizer) return {nullptr, "ThreadSanitizer does not understand threads that wait in page faults"};
  int descriptor = limits.no_system_calls ? -1 : open_full();
  if (descriptor < 0) {
    const int reason = errno;
    descriptor = open_for_user_faults();
    if (descriptor < 0) {
      return {nullptr, std::string("this kernel or container does not allow userfaultfd (") +
                           std::strerror(limits.no_system_calls ? errno : reason) + ")"};
    }
    if (!limits.user_faults) {
      ::close(descriptor);
      return {nullptr,
              "this process may not hold up system calls that write to protected memory; allow it with sysctl "
              "vm.unprivileged_userfaultfd=1 or access to /dev/userfaultfd"};
    }
  }
  // What the kernel has is told once per descriptor: one to ask, one to use.
  const int probe = open_for_user_faults();
  const std::uint64_t available = probe < 0 ? 0 : features_of(probe);
  if (probe >= 0) ::close(probe);
  const bool unpopulated = (available & UFFD_FEATURE_WP_UNPOPULATED) != 0 && !limits.no_unpopulated;
  uffdio_api api{.api = UFFD_API, .features = kWanted, .ioctls = 0};
  if (unpopulated) api.features |= UFFD_FEATURE_WP_UNPOPULATED;
  if ((available & kWanted) != kWanted || ::ioctl(descriptor, UFFDIO_API, &api) != 0) {
    ::close(descriptor);
    return {nullptr, "this kernel can't write-protect memory by userfaultfd (Linux 5.7 can)"};
  }
  try {
    return {std::unique_ptr<WriteGuard>(new WriteGuard(descriptor, !unpopulated, std::move(observer))), ""};
  } catch (const std::system_error& error) {
    return {nullptr, std::string("no thread to watch the memory: ") + error.what()};
  } catch (const Error& error) {
    return {nullptr, error.what()};
  }
}

WriteGuard::WriteGuard(int descriptor, bool populates, Observer observer)
    : descriptor_(descriptor),
      stop_event_(::eventfd(0, EFD_CLOEXEC)),
      populates_(populates),
      observer_(std::move(observer)) {
  if (stop_event_ < 0) {
    const int reason = errno;
    ::close(descriptor_);
    throw errno_error(reason, "eventfd");
  }
  {
    const std::lock_guard lock(descriptors().mutex);
    descriptors().open.push_back(descriptor_);
    descriptors().open.push_back(stop_event_);
  }
  // Two, so that a second thread that writes elsewhere does not wait for the first one's copy.
  constexpr int kThreads = 2;
  for (int i = 0; i < kThreads; ++i) {
    try {
      threads_.emplace_back([this] { watch(); });
    } catch (const std::system_error&) {
      if (!threads_.empty()) break;  // one will do
      const std::lock_guard lock(descriptors().mutex);
      std::erase_if(descriptors().open, [this](int open) { return open == descriptor_ || open == stop_event_; });
      ::close(descriptor_);
      ::close(stop_event_);
      throw;
    }
  }
}

WriteGuard::~WriteGuard() {
  stop();
}

void WriteGuard::stop() noexcept {
  if (threads_.empty()) return;
  // Before the threads end: from here on nobody can begin to wait. Who waits is woken.
  {
    const std::lock_guard lock(mutex_);
    for (const auto& pages : ranges_) {
      uffdio_range range = range_of(pages);
      ::ioctl(descriptor_, UFFDIO_UNREGISTER, &range);
    }
    ranges_.clear();
  }
  const std::uint64_t one = 1;
  static_cast<void>(!::write(stop_event_, &one, sizeof one));
  threads_.clear();
  const std::lock_guard lock(descriptors().mutex);
  std::erase_if(descriptors().open, [this](int open) { return open == descriptor_ || open == stop_event_; });
  ::close(descriptor_);
  ::close(stop_event_);
}

bool WriteGuard::protect(std::span<const std::byte> pages) {
  uffdio_register registration{.range = range_of(pages), .mode = UFFDIO_REGISTER_MODE_WP, .ioctls = 0};
  if (::ioctl(descriptor_, UFFDIO_REGISTER, &registration) != 0) return false;
  uffdio_range range = registration.range;
  const auto give_up = [&] {
    ::ioctl(descriptor_, UFFDIO_UNREGISTER, &range);
    return false;
  };
  if ((registration.ioctls & (1ULL << _UFFDIO_WRITEPROTECT)) == 0) return give_up();
  // An older kernel does not protect pages that were never touched: make them zero pages, which it does.
  if (populates_ && ::madvise(const_cast<std::byte*>(pages.data()), pages.size(), MADV_POPULATE_READ) != 0) {
    return give_up();
  }
  if (write_protect(descriptor_, {.range = range, .mode = UFFDIO_WRITEPROTECT_MODE_WP}) != 0) return give_up();
  const std::lock_guard lock(mutex_);
  ranges_.push_back(pages);
  return true;
}

void WriteGuard::give_up(std::span<const std::byte> pages) noexcept {
  const std::lock_guard lock(mutex_);
  for (const auto& own : ranges_) {
    const std::byte* begin = std::max(own.data(), pages.data());
    const std::byte* end = std::min(own.data() + own.size(), pages.data() + pages.size());
    if (begin >= end) continue;
    uffdio_range range = range_of({begin, end});
    ::ioctl(descriptor_, UFFDIO_UNREGISTER, &range);
  }
}

void WriteGuard::release(std::span<const std::byte> pages) const noexcept {
  const int reason = write_protect(descriptor_, {.range = range_of(pages), .mode = 0});
  if (reason == 0) return;
  // Part of it is not ours any more, or the map does not come to rest: to let go of the pages it need not.
  uffdio_range range = range_of(pages);
  if (reason == EAGAIN) ::ioctl(descriptor_, UFFDIO_UNREGISTER, &range);
  // That wakes nobody who waits to write. Who is woken finds out by trying again.
  range = range_of(pages);
  ::ioctl(descriptor_, UFFDIO_WAKE, &range);
}

void WriteGuard::watch() noexcept {
  std::array<pollfd, 2> sources{
      {{.fd = descriptor_, .events = POLLIN, .revents = 0}, {.fd = stop_event_, .events = POLLIN, .revents = 0}}};
  while (true) {
    if (::poll(sources.data(), sources.size(), -1) < 0) continue;  // EINTR
    handle_events();
    if (sources[1].revents != 0) return;
  }
}

void WriteGuard::handle_events() noexcept {
  // One at a time, so that the threads share them.
  uffd_msg message{};
  std::span<const std::byte> lost;
  while (next_event(message, lost)) {
    if (message.event == UFFD_EVENT_PAGEFAULT) {
      observer_.on_write(reinterpret_cast<const std::byte*>(message.arg.pagefault.address));
    } else if (!lost.empty()) {
      observer_.on_lost(lost);
    }
  }
}

bool WriteGuard::next_event(uffd_msg& message, std::span<const std::byte>& lost) noexcept {
  const std::lock_guard lock(lost_mutex_);
  lost = {};
  if (::read(descriptor_, &message, sizeof message) != static_cast<ssize_t>(sizeof message)) return false;
  if (message.event == UFFD_EVENT_UNMAP || message.event == UFFD_EVENT_REMOVE) {
    const auto* begin = reinterpret_cast<const std::byte*>(message.arg.remove.start);
    lost = {begin, message.arg.remove.end - message.arg.remove.start};
    lost_.push_back(lost);
  }
  return true;
}

bool WriteGuard::is_lost(std::span<const std::byte> pages) const {
  const std::lock_guard lock(lost_mutex_);
  return std::any_of(lost_.begin(), lost_.end(), [&](const auto& lost) {
    return lost.data() < pages.data() + pages.size() && pages.data() < lost.data() + lost.size();
  });
}

std::vector<AddressRange> private_memory(std::string_view maps) {
  // begin-end perms offset device inode   name
  std::vector<AddressRange> ranges;
  while (!maps.empty()) {
    const std::size_t line_end = std::min(maps.find('\n'), maps.size());
    std::string_view line = maps.substr(0, line_end);
    maps.remove_prefix(std::min(line_end + 1, maps.size()));
    AddressRange range;
    if (!read_hex(line, '-', range.begin) || !read_hex(line, ' ', range.end) || line.size() < 5) continue;
    if (line[0] != 'r' || line[1] != 'w' || line[3] != 'p') continue;
    line.remove_prefix(5);
    for (int field = 0; field < 2; ++field) line.remove_prefix(std::min(line.find(' ') + 1, line.size()));
    const std::size_t inode_end = std::min(line.find(' '), line.size());
    if (line.substr(0, inode_end) != "0") continue;
    line.remove_prefix(inode_end);
    line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
    if (!line.empty() && line != "[heap]" && !line.starts_with("[anon:")) continue;
    if (!ranges.empty() && ranges.back().end == range.begin) {
      ranges.back().end = range.end;
    } else {
      ranges.push_back(range);
    }
  }
  return ranges;
}

std::vector<AddressRange> private_memory() {
  const int file = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (file < 0) return {};
  std::string text;
  std::array<char, 1 << 16> part{};
  ssize_t got = 0;
  while ((got = ::read(file, part.data(), part.size())) > 0 || (got < 0 && errno == EINTR)) {
    if (got > 0) text.append(part.data(), static_cast<std::size_t>(got));
  }
  ::close(file);
  return private_memory(text);
}

bool is_within(std::span<const std::byte> memory, const std::vector<AddressRange>& ranges) noexcept {
  const auto begin = reinterpret_cast<std::uintptr_t>(memory.data());
  const auto after =
      std::upper_bound(ranges.begin(), ranges.end(), begin,
                       [](std::uintptr_t address, const AddressRange& range) { return address < range.begin; });
  return after != ranges.begin() && begin + memory.size() <= std::prev(after)->end;
}

}  // namespace torchsnapshot
