// The commands. Each has its options as plain data, filled by arguments.cc, and one file that runs it: it asks the
// engine and writes what it learns. Returns an exit status; throws torchsnapshot::Error.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/terminal.h"
#include "torchsnapshot/inspect.h"
#include "torchsnapshot/prune.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot::cli {

inline constexpr int kFine = 0;
inline constexpr int kFinding = 1;  ///< something is corrupt, or differs
inline constexpr int kError = 2;    ///< usage, or the storage failed

/// What every command has.
struct Common {
  bool json = false;
  ColorMode color = ColorMode::kAuto;
  StorageOptions storage;
  std::uint32_t threads = 16;
  bool verify = true;  ///< what is read by its checksums
};

struct LsOptions {
  std::string url;
  std::vector<std::string> patterns;
  std::vector<std::string> dtypes;
  std::optional<std::int64_t> rank;
  std::optional<std::size_t> depth;
  std::string sort = "saved";
  bool flat = false;
  bool names = false;
};
int run_ls(const Common& common, const LsOptions& options);

struct InfoOptions {
  std::string url;
};
int run_info(const Common& common, const InfoOptions& options);

struct CatOptions {
  std::string url;
  std::string path;
  std::size_t first = 8;
  std::string npy;  ///< file, "-" for standard output; empty: a summary
  bool raw = false;
};
int run_cat(const Common& common, const CatOptions& options);

struct VerifyCommandOptions {
  std::string url;
  bool quick = false;
};
int run_verify(const Common& common, const VerifyCommandOptions& options);

struct DiffCommandOptions {
  std::string a;
  std::string b;
  std::vector<std::string> patterns;
  std::optional<double> rtol;
  std::optional<double> atol;
};
int run_diff(const Common& common, const DiffCommandOptions& options);

struct RmOptions {
  std::string url;
  bool yes = false;
  bool force = false;
  bool dry_run = false;
};
int run_rm(const Common& common, const RmOptions& options);

struct PruneCommandOptions {
  std::string url;
  std::string older_than = "1d";
  bool dry_run = false;
};
int run_prune(const Common& common, const PruneCommandOptions& options);

/// What the completion scripts and the manual page are made of.
struct Describe {
  struct Option {
    std::vector<std::string> names;  ///< "-r", "--rank"
    std::string value;               ///< what it takes ("N"); empty for a flag
    std::vector<std::string> choices;
    std::string text;
  };
  struct Command {
    std::string name;
    std::string text;
    std::string positionals;  ///< "SNAPSHOT [PATTERN...]"
    std::string footer;
    std::vector<Option> options;
  };
  std::string text;
  std::vector<Command> commands;
};
/// The text of "torchsnapshot completion SHELL", with SHELL one of "bash", "zsh", "fish", "man".
std::string completion_text(const std::string& shell, const Describe& program);

/// "90s", "30m", "12h", "1d", "2w"; a bare 0. Throws Error(kInvalidArgument).
std::chrono::seconds parse_duration(const std::string& text);

/// Limits and observers for the engine: Ctrl-C, a progress bar where there is a terminal, notices.
IoOptions io_options(const Common& common, ProgressBar& bar);

}  // namespace torchsnapshot::cli
