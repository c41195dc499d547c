// The marker of a take that is under way: an object beside its data that says which process writes it, so that prune
// can tell a running take from a dead one at once where it can see the process, and by age everywhere else.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace torchsnapshot {

/// ".torchsnapshot/TAKE_ID/running-RANK"
std::string take_marker_location(std::string_view take_id, std::int64_t rank);
/// Whether a location is that of a marker.
bool is_take_marker(std::string_view location) noexcept;

/// A process, told apart from every other one: process ids are used again, and mean something only within one boot and
/// one pid namespace.
struct ProcessIdentity {
  std::string host;           ///< for people
  std::string boot_id;        ///< of the kernel's run; the same in all containers of a machine
  std::string pid_namespace;  ///< "pid:[4026531836]"
  std::int64_t pid = 0;
  std::string start_time;  ///< clock ticks since the boot
  friend bool operator==(const ProcessIdentity&, const ProcessIdentity&) = default;
};

/// This process.
ProcessIdentity this_process();

/// The marker's content, a line for each field.
std::string make_take_marker(const ProcessIdentity& process);
/// The inverse; nothing for a text that is no marker.
std::optional<ProcessIdentity> parse_take_marker(std::string_view text);

enum class ProcessLife : std::uint8_t { kRunning, kGone, kUnknown };

/// What is known of a process of this machine: its start time; "" when there is none of that number; nothing when it
/// can't be told.
using StartTimeFn = std::function<std::optional<std::string>(std::int64_t pid)>;

/// Whether `writer` still runs, as seen from `here`: unknown from another machine, boot or pid namespace. Pure, but
/// for what `start_time_of` asks.
ProcessLife life_of(const ProcessIdentity& writer, const ProcessIdentity& here, const StartTimeFn& start_time_of);
/// As seen from this process.
ProcessLife life_of(const ProcessIdentity& writer);

}  // namespace torchsnapshot
