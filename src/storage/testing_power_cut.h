// A power cut, simulated at the seam to the operating system.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "storage/posix.h"
#include "storage/ring.h"

namespace torchsnapshot {

/// The operating system on a folder, with a memory of what is durable. A file's content is durable as of its last
/// fdatasync, a name in a folder as of the folder's last fsync, and nothing else. After `power_left` changes every
/// further one fails, as if the machine had died; survivors() is then what may be found after the restart: all that is
/// durable, and of the rest any part. Thread-safe.
class PowerCutSys final : public Sys {
 public:
  static constexpr std::uint64_t kForever = std::numeric_limits<std::uint64_t>::max();

  /// Knows nothing of what lies in `root` already, which must be empty.
  explicit PowerCutSys(std::filesystem::path root) : root_(std::move(root)) { nodes_.emplace_back(true); }

  /// So many changes are still made.
  void cut_after(std::uint64_t changes) {
    const std::lock_guard lock(mutex_);
    power_left_ = changes;
  }
  /// Changes made so far.
  [[nodiscard]] std::uint64_t changes() {
    const std::lock_guard lock(mutex_);
    return changes_;
  }
  /// Whether a change failed for want of power.
  [[nodiscard]] bool is_cut() {
    const std::lock_guard lock(mutex_);
    return is_cut_;
  }

  /// Writes to the empty folder `target` what a restart finds. Of each change that is not durable `chance` per cent
  /// have survived, in any combination.
  void survivors(const std::filesystem::path& target, unsigned seed, unsigned chance) {
    const std::lock_guard lock(mutex_);
    std::mt19937 random(seed);
    write_folder(target, 0, random, chance);
  }

  int open(const char* path, int flags, mode_t mode) override {
    const std::lock_guard lock(mutex_);
    const bool creates = (flags & O_CREAT) != 0;
    if (creates && !spend()) return -1;
    const int fd = Sys::open(path, flags, mode);
    if (fd < 0) return -1;
    const auto [folder, name] = split(path);
    if (creates) {
      nodes_.emplace_back(false);
      link(folder, name, nodes_.size() - 1);
    }
    fds_[fd] = find(path);
    return fd;
  }
  int close(int fd) override {
    const std::lock_guard lock(mutex_);
    fds_.erase(fd);
    return Sys::close(fd);
  }
  ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
    const std::lock_guard lock(mutex_);
    if (!spend()) return -1;
    const ssize_t written = Sys::pwrite(fd, data, size, offset);
    if (written > 0) {
      nodes_[fds_.at(fd)].pending.push_back(
          {static_cast<std::size_t>(offset),
           std::string(static_cast<const char*>(data), static_cast<std::size_t>(written)), std::nullopt});
    }
    return written;
  }
  int fallocate(int fd, off_t size) override {
    return resize(fd, size, [&] { return Sys::fallocate(fd, size); });
  }
  int ftruncate(int fd, off_t size) override {
    return resize(fd, size, [&] { return Sys::ftruncate(fd, size); });
  }
  int fsync(int fd) override { return sync(fd); }
  int fdatasync(int fd) override { return sync(fd); }
  int mkdir(const char* path, mode_t mode) override {
    const std::lock_guard lock(mutex_);
    if (!spend()) return -1;
    if (Sys::mkdir(path, mode) != 0) return -1;
    const auto [folder, name] = split(path);
    nodes_.emplace_back(true);
    link(folder, name, nodes_.size() - 1);
    return 0;
  }
  int rmdir(const char* path) override {
    return unlink_with(path, [&] { return Sys::rmdir(path); });
  }
  int unlink(const char* path) override {
    return unlink_with(path, [&] { return Sys::unlink(path); });
  }
  int rename(const char* from, const char* to) override {
    const std::lock_guard lock(mutex_);
    if (!spend()) return -1;
    const std::size_t node = find(from);
    if (Sys::rename(from, to) != 0) return -1;
    const auto [from_folder, from_name] = split(from);
    const auto [to_folder, to_name] = split(to);
    // One change, if it is within a folder: both names or none.
    NameChange change{{{to_name, node}}};
    if (from_folder == to_folder) {
      change.names.emplace_back(from_name, std::nullopt);
    } else {
      apply(nodes_[from_folder], NameChange{{{from_name, std::nullopt}}});
    }
    apply(nodes_[to_folder], std::move(change));
    return 0;
  }
  std::unique_ptr<Ring> make_ring(unsigned depth) override { return std::make_unique<ModelRing>(*this, depth); }

 private:
  /// A ring whose requests go through the calls above.
  class ModelRing final : public Ring {
   public:
    ModelRing(PowerCutSys& sys, unsigned depth) : sys_(sys), depth_(depth) {}
    bool push(const RingRequest& request) override {
      if (queued_.size() + under_way_.size() >= depth_) return false;
      queued_.push_back(request);
      return true;
    }
    int submit() override {
      const int taken = static_cast<int>(queued_.size());
      for (; !queued_.empty(); queued_.pop_front()) under_way_.push_back(queued_.front());
      return taken;
    }
    int wait() override { return 0; }
    std::optional<RingDone> pop() override {
      if (under_way_.empty()) return std::nullopt;
      const RingRequest request = under_way_.back();
      under_way_.pop_back();
      const ssize_t moved = request.is_write ? sys_.pwrite(request.fd, request.data, request.size, request.offset)
                                             : sys_.pread(request.fd, request.data, request.size, request.offset);
      return RingDone{request.tag, moved < 0 ? -errno : static_cast<int>(moved)};
    }

   private:
    PowerCutSys& sys_;
    const unsigned depth_;
    std::deque<RingRequest> queued_;
    std::deque<RingRequest> under_way_;
  };

  /// Bytes at an offset, or a new size.
  struct Change {
    std::size_t offset = 0;
    std::string bytes;
    std::optional<std::size_t> size;
  };
  /// Names that come (with a node) or go, at once.
  struct NameChange {
    std::vector<std::pair<std::string, std::optional<std::size_t>>> names;
  };
  struct Node {
    explicit Node(bool folder) : is_folder(folder) {}
    bool is_folder;
    std::string durable;                               ///< content
    std::vector<Change> pending;                       ///< since
    std::map<std::string, std::size_t> names;          ///< as the running system sees them
    std::map<std::string, std::size_t> durable_names;  ///< as of the last fsync
    std::vector<NameChange> pending_names;             ///< since
  };

  bool spend() {
    if (power_left_ == 0) {
      is_cut_ = true;
      errno = EIO;
      return false;
    }
    if (power_left_ != kForever) --power_left_;
    ++changes_;
    return true;
  }

  [[nodiscard]] std::size_t find(const std::filesystem::path& path) const {
    std::size_t node = 0;
    for (const auto& part : path.lexically_relative(root_)) {
      if (part != ".") node = nodes_[node].names.at(part.native());
    }
    return node;
  }
  [[nodiscard]] std::pair<std::size_t, std::string> split(const std::filesystem::path& path) const {
    if (path == root_) return {0, "."};
    return {find(path.parent_path()), path.filename().native()};
  }

  static void apply_to(std::map<std::string, std::size_t>& names, const NameChange& change) {
    for (const auto& [name, node] : change.names) {
      if (node) {
        names[name] = *node;
      } else {
        names.erase(name);
      }
    }
  }
  static void apply(Node& folder, NameChange change) {
    apply_to(folder.names, change);
    folder.pending_names.push_back(std::move(change));
  }
  void link(std::size_t folder, const std::string& name, std::size_t node) {
    apply(nodes_[folder], NameChange{{{name, node}}});
  }

  template <typename Call>
  int resize(int fd, off_t size, const Call& call) {
    const std::lock_guard lock(mutex_);
    if (!spend()) return -1;
    const int result = call();
    if (result == 0) nodes_[fds_.at(fd)].pending.push_back({0, {}, static_cast<std::size_t>(size)});
    return result;
  }

  template <typename Call>
  int unlink_with(const char* path, const Call& call) {
    const std::lock_guard lock(mutex_);
    if (!spend()) return -1;
    if (call() != 0) return -1;
    const auto [folder, name] = split(path);
    apply(nodes_[folder], NameChange{{{name, std::nullopt}}});
    return 0;
  }

  int sync(int fd) {
    const std::lock_guard lock(mutex_);
    if (!spend()) return -1;
    Node& node = nodes_[fds_.at(fd)];
    for (const Change& change : node.pending) apply_to(node.durable, change);
    node.pending.clear();
    node.durable_names = node.names;
    node.pending_names.clear();
    return 0;  // the disk itself is not under test
  }

  static void apply_to(std::string& content, const Change& change) {
    if (change.size) {
      content.resize(*change.size, '\0');
      return;
    }
    content.resize(std::max(content.size(), change.offset + change.bytes.size()), '\0');
    content.replace(change.offset, change.bytes.size(), change.bytes);
  }

  void write_folder(const std::filesystem::path& target, std::size_t number, std::mt19937& random,
                    unsigned chance) const {
    const Node& folder = nodes_[number];
    std::map<std::string, std::size_t> names = folder.durable_names;
    for (const NameChange& change : folder.pending_names) {
      if (random() % 100 < chance) apply_to(names, change);
    }
    for (const auto& [name, child] : names) {
      const Node& node = nodes_[child];
      if (node.is_folder) {
        std::filesystem::create_directory(target / name);
        write_folder(target / name, child, random, chance);
        continue;
      }
      std::string content = node.durable;
      for (const Change& change : node.pending) write_survivors(content, change, random, chance);
      std::ofstream(target / name, std::ios::binary) << content;
    }
  }

  /// Sector by sector.
  static void write_survivors(std::string& content, const Change& change, std::mt19937& random, unsigned chance) {
    constexpr std::size_t kSector = 512;
    if (change.size) {
      if (random() % 100 < chance) apply_to(content, change);
      return;
    }
    for (std::size_t at = 0; at < change.bytes.size(); at += kSector) {
      if (random() % 100 < chance) {
        apply_to(content, {change.offset + at, change.bytes.substr(at, kSector), std::nullopt});
      }
    }
  }

  const std::filesystem::path root_;
  std::mutex mutex_;
  std::uint64_t power_left_ = kForever;
  std::uint64_t changes_ = 0;
  bool is_cut_ = false;
  std::deque<Node> nodes_;  ///< 0: the root
  std::map<int, std::size_t> fds_;
};

}  // namespace torchsnapshot
