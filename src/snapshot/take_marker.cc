#include "snapshot/take_marker.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <climits>
#include <csignal>
#include <fstream>
#include <iterator>
#include <utility>

#include "snapshot/take_objects.h"

namespace torchsnapshot {
namespace {

constexpr std::string_view kHeader = "torchsnapshot take 1\n";
constexpr std::string_view kMarkerName = "/running-";

std::string read_small_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

/// Field 22 of /proc/PID/stat. The name of the program before it may hold anything, so fields count from its last ')'.
std::string start_time_in(const std::string& stat) {
  constexpr int kFieldsBefore = 20;  // after the name
  std::size_t at = stat.rfind(')');
  for (int i = 0; i < kFieldsBefore && at != std::string::npos; ++i) at = stat.find(' ', at + 1);
  if (at == std::string::npos) return {};
  return stat.substr(at + 1, stat.find(' ', at + 1) - at - 1);
}

std::optional<std::string> start_time_of_process(std::int64_t pid) {
  if (::kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH) return "";
  std::string start = start_time_in(read_small_file("/proc/" + std::to_string(pid) + "/stat"));
  if (start.empty()) return std::nullopt;  // hidden from us
  return start;
}

std::string host_name() {
  std::array<char, HOST_NAME_MAX + 1> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "";
}

std::string pid_namespace() {
  std::array<char, 128> target{};
  const ssize_t size = ::readlink("/proc/self/ns/pid", target.data(), target.size());
  return size > 0 ? std::string(target.data(), static_cast<std::size_t>(size)) : "";
}

}  // namespace

std::string take_marker_location(std::string_view take_id, std::int64_t rank) {
  return std::string(kSidecarFolder) + std::string(take_id) + std::string(kMarkerName) + std::to_string(rank);
}

bool is_take_marker(std::string_view location) noexcept {
  const std::string_view id = take_id_of(location, kSidecarFolder);
  return !id.empty() && location.substr(kSidecarFolder.size() + id.size()).starts_with(kMarkerName);
}

ProcessIdentity this_process() {
  ProcessIdentity process;
  process.host = host_name();
  std::replace(process.host.begin(), process.host.end(), '\n', '?');
  process.boot_id = read_small_file("/proc/sys/kernel/random/boot_id");
  process.pid_namespace = pid_namespace();
  process.pid = ::getpid();
  process.start_time = start_time_in(read_small_file("/proc/self/stat"));
  return process;
}

std::string make_take_marker(const ProcessIdentity& process) {
  return std::string(kHeader) + process.host + "\n" + process.boot_id + "\n" + process.pid_namespace + "\n" +
         std::to_string(process.pid) + "\n" + process.start_time + "\n";
}

std::optional<ProcessIdentity> parse_take_marker(std::string_view text) {
  if (!text.starts_with(kHeader)) return std::nullopt;
  text.remove_prefix(kHeader.size());
  std::array<std::string_view, 5> lines;
  for (std::string_view& line : lines) {
    const auto end = text.find('\n');
    if (end == std::string_view::npos) return std::nullopt;
    line = text.substr(0, end);
    text.remove_prefix(end + 1);
  }
  ProcessIdentity process{std::string(lines[0]), std::string(lines[1]), std::string(lines[2]), 0,
                          std::string(lines[4])};
  const auto [stop, status] = std::from_chars(lines[3].data(), lines[3].data() + lines[3].size(), process.pid);
  if (!text.empty() || status != std::errc() || stop != lines[3].data() + lines[3].size() || process.pid <= 0 ||
      process.pid > INT_MAX) {
    return std::nullopt;
  }
  return process;
}

ProcessLife life_of(const ProcessIdentity& writer, const ProcessIdentity& here, const StartTimeFn& start_time_of) {
  const bool known = !writer.boot_id.empty() && !writer.pid_namespace.empty() && !writer.start_time.empty();
  if (!known || writer.boot_id != here.boot_id || writer.pid_namespace != here.pid_namespace) {
    return ProcessLife::kUnknown;
  }
  const auto start = start_time_of(writer.pid);
  if (!start) return ProcessLife::kUnknown;
  return *start == writer.start_time ? ProcessLife::kRunning : ProcessLife::kGone;
}

ProcessLife life_of(const ProcessIdentity& writer) {
  return life_of(writer, this_process(), start_time_of_process);
}

}  // namespace torchsnapshot
