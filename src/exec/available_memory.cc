#include "exec/available_memory.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <utility>

namespace torchsnapshot {
namespace {

constexpr std::uint64_t kUnknownAvailable = 1ULL << 30;
constexpr std::uint64_t kMaxBudget = 32ULL << 30;
constexpr std::uint64_t kMinBudget = 64ULL << 20;  // less would only make the work serial
// v1 writes "no limit" as the largest multiple of the page size that a signed 64-bit number holds.
constexpr std::uint64_t kNoLimit = 1ULL << 60;
constexpr std::size_t kMaxFileBytes = 1 << 20;

std::string_view trim(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r\n";
  const auto begin = text.find_first_not_of(kBlank);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlank) - begin + 1);
}

std::optional<std::uint64_t> parse_number(std::string_view text) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

/// Calls `use(line)` for each line until it returns true.
template <typename Use>
void for_each_line(std::string_view text, Use use) {
  while (!text.empty()) {
    const auto end = std::min(text.find('\n'), text.size());
    if (use(text.substr(0, end))) return;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

bool has_item(std::string_view comma_list, std::string_view item) {
  while (true) {
    const auto end = std::min(comma_list.find(','), comma_list.size());
    if (comma_list.substr(0, end) == item) return true;
    if (end == comma_list.size()) return false;
    comma_list.remove_prefix(end + 1);
  }
}

/// The names of one cgroup version's files.
struct CgroupFiles {
  std::string mount;
  const char* limit;
  const char* usage;
  const char* inactive;  // a field of memory.stat
};

/// What one cgroup still allows; nothing if it sets no limit.
std::optional<std::uint64_t> room_in(const CgroupFiles& files, const std::string& folder, const ReadFileFn& read_file) {
  const auto number_in = [&](const char* name) -> std::optional<std::uint64_t> {
    const auto text = read_file(folder + "/" + name);
    return text ? parse_cgroup_bytes(*text) : std::nullopt;
  };
  const auto limit = number_in(files.limit);
  if (!limit) return std::nullopt;
  const std::uint64_t usage = number_in(files.usage).value_or(0);
  const auto stat = read_file(folder + "/memory.stat");
  const std::uint64_t inactive = stat ? parse_memory_stat(*stat, files.inactive).value_or(0) : 0;
  const std::uint64_t held = usage - std::min(usage, inactive);
  return *limit - std::min(*limit, held);
}

/// The tightest of a cgroup and those above it. Inside a container the path may be the host's, of which only
/// the mount itself is visible here: folders that are not there set no limit.
std::optional<std::uint64_t> room_from(const CgroupFiles& files, std::string path, const ReadFileFn& read_file) {
  std::optional<std::uint64_t> least;
  while (true) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    if (const auto room = room_in(files, files.mount + path, read_file)) least = std::min(least.value_or(*room), *room);
    if (path.empty()) return least;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

}  // namespace

std::optional<std::uint64_t> parse_mem_available(std::string_view meminfo) {
  constexpr std::string_view kName = "MemAvailable:";
  std::optional<std::uint64_t> bytes;
  for_each_line(meminfo, [&](std::string_view line) {
    if (!line.starts_with(kName)) return false;
    std::string_view number = trim(line.substr(kName.size()));
    if (!number.ends_with("kB")) return true;
    const auto kibibytes = parse_number(trim(number.substr(0, number.size() - 2)));
    if (kibibytes && *kibibytes <= std::numeric_limits<std::uint64_t>::max() / 1024) bytes = *kibibytes * 1024;
    return true;
  });
  return bytes;
}

std::optional<std::uint64_t> parse_cgroup_bytes(std::string_view text) {
  const auto number = parse_number(trim(text));
  return number && *number < kNoLimit ? number : std::nullopt;
}

std::optional<std::uint64_t> parse_memory_stat(std::string_view memory_stat, std::string_view name) {
  std::optional<std::uint64_t> value;
  for_each_line(memory_stat, [&](std::string_view line) {
    if (!line.starts_with(name) || line.size() <= name.size() || line[name.size()] != ' ') return false;
    value = parse_number(trim(line.substr(name.size())));
    return true;
  });
  return value;
}

CgroupPaths parse_cgroup_paths(std::string_view proc_self_cgroup) {
  CgroupPaths paths;
  for_each_line(proc_self_cgroup, [&](std::string_view line) {
    // hierarchy-id:controllers:path; the unified hierarchy has id 0 and no controllers.
    const auto first = line.find(':');
    const auto second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos) return false;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const std::string_view path = line.substr(second + 1);
    if (!path.starts_with('/')) return false;
    if (line.substr(0, first) == "0" && controllers.empty()) paths.v2 = std::string(path);
    if (has_item(controllers, "memory")) paths.v1_memory = std::string(path);
    return false;
  });
  return paths;
}

std::optional<std::uint64_t> available_memory(const ReadFileFn& read_file) {
  std::optional<std::uint64_t> least;
  const auto limit_to = [&least](std::optional<std::uint64_t> bytes) {
    if (bytes) least = std::min(least.value_or(*bytes), *bytes);
  };
  if (const auto meminfo = read_file("/proc/meminfo")) limit_to(parse_mem_available(*meminfo));
  if (const auto cgroups = read_file("/proc/self/cgroup")) {
    const CgroupPaths paths = parse_cgroup_paths(*cgroups);
    if (paths.v2) {
      limit_to(room_from({"/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"}, *paths.v2, read_file));
    }
    if (paths.v1_memory) {
      limit_to(
          room_from({"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"},
                    *paths.v1_memory, read_file));
    }
  }
  return least;
}

std::uint64_t memory_budget_of(std::optional<std::uint64_t> available, std::uint32_t local_ranks) {
  const std::uint64_t bytes = available.value_or(kUnknownAvailable);
  const std::uint64_t share = bytes / 5 * 3 / std::max<std::uint32_t>(1, local_ranks);
  return std::clamp(share, kMinBudget, kMaxBudget);
}

std::optional<std::string> read_small_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  std::string text(kMaxFileBytes, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) return std::nullopt;
  text.resize(static_cast<std::size_t>(file.gcount()));
  return text;
}

}  // namespace torchsnapshot
