// How much memory this process may use: what the kernel has, and what its cgroups allow.
// All of it but read_small_file is pure: text in, numbers out.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace torchsnapshot {

/// Bytes of the line "MemAvailable: N kB" of /proc/meminfo; nothing if it is missing or malformed.
std::optional<std::uint64_t> parse_mem_available(std::string_view meminfo);

/// A number of bytes as a cgroup file has it. Nothing for "max", for malformed text, and for the huge values
/// by which cgroup v1 says "no limit".
std::optional<std::uint64_t> parse_cgroup_bytes(std::string_view text);

/// The field `name` of a cgroup's memory.stat ("inactive_file 4096").
std::optional<std::uint64_t> parse_memory_stat(std::string_view memory_stat, std::string_view name);

/// Where /proc/self/cgroup says that this process is: "/" and below, relative to the mount of the hierarchy.
struct CgroupPaths {
  std::optional<std::string> v2;         ///< the unified hierarchy
  std::optional<std::string> v1_memory;  ///< the memory controller of v1
};
CgroupPaths parse_cgroup_paths(std::string_view proc_self_cgroup);

/// The text of a file, or nothing if it can't be read.
using ReadFileFn = std::function<std::optional<std::string>(const std::string& path)>;

/// The smallest of MemAvailable and, for the process's cgroup and each one above it, limit minus usage; file
/// cache that the kernel drops on demand does not count as usage. Nothing if none of it is known.
std::optional<std::uint64_t> available_memory(const ReadFileFn& read_file);

/// default_memory_budget as a function of the available memory; unknown counts as 1 GiB.
std::uint64_t memory_budget_of(std::optional<std::uint64_t> available, std::uint32_t local_ranks);

/// A ReadFileFn for real files (at most 1 MiB of them).
std::optional<std::string> read_small_file(const std::string& path);

}  // namespace torchsnapshot
