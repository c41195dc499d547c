// Runs a program and takes what it prints.
#pragma once

#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

namespace torchsnapshot {

/// Words of a command line: separated by blanks, with '…', "…" and backslashes as a shell has them, and nothing else of
/// a shell. Throws Error(kInvalidArgument) for a quote without an end.
std::vector<std::string> split_command(std::string_view command);

/// What the program prints (at most 1 MiB; its stderr is this process's). Throws Error(kPermissionDenied) that begins
/// with `what` when it can't be started, fails, or takes more than a minute; Error(kCancelled) on a stop.
std::string run_process(const std::vector<std::string>& words, const std::stop_token& stop, const std::string& what);

}  // namespace torchsnapshot
