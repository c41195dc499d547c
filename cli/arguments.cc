#include "cli/arguments.h"

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/json.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot::cli {
namespace {

constexpr const char* kUrlHelp = "Path or URL of the snapshot";
constexpr const char* kPatternHelp = "Shell patterns over paths with or without the rank ('*' matches '/' too)";

volatile std::sig_atomic_t caught_signal = 0;

extern "C" void note_signal(int number) {
  caught_signal = number;
}

/// The first Ctrl-C ends the work in order; the second ends the program.
void catch_signals() {
  struct sigaction action {};
  action.sa_handler = note_signal;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

/// All options, and which command was given.
struct CommandLine {
  Common common;
  std::vector<std::string> storage_options;
  std::string color = "auto";
  LsOptions ls;
  InfoOptions info;
  CatOptions cat;
  VerifyCommandOptions verify;
  DiffCommandOptions diff;
  RmOptions rm;
  PruneCommandOptions prune;
  std::string shell;
  std::function<int()> run;
};

/// A check that the help does not name: the text of the option says what it takes.
CLI::Validator unnamed(const CLI::Validator& check) {
  return CLI::Validator(check).description("");
}

CLI::Validator one_of(const std::vector<std::string>& choices) {
  return unnamed(CLI::IsMember(choices));
}

CLI::App* add_command(CLI::App& app, CommandLine& line, const std::string& name, const std::string& text,
                      const std::string& examples, std::function<int()> run) {
  CLI::App* command = app.add_subcommand(name, text);
  command->footer("Examples:\n" + examples);
  command->add_flag("--json", line.common.json, "Write JSON, for machines");
  command->add_option("--color", line.color, "Colours: auto, always or never")
      ->check(one_of({"auto", "always", "never"}))
      ->type_name("WHEN");
  command->add_option("-o,--option", line.storage_options, "An option of the storage, KEY=VALUE; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command->callback([&line, run = std::move(run)] { line.run = run; });
  return command;
}

void add_threads(CLI::App* command, CommandLine& line) {
  command->add_option("-j,--threads", line.common.threads, "Reads in flight at once (16)")
      ->check(unnamed(CLI::Range(1, 1024)))
      ->type_name("N");
}

void add_no_verify(CLI::App* command, CommandLine& line) {
  command->add_flag_callback(
      "--no-verify", [&line] { line.common.verify = false; },
      "Look at what is there even if its checksums say that it is damaged");
}

void add_commands(CLI::App& app, CommandLine& line) {
  CLI::App* ls = add_command(app, line, "ls", "List what is in a snapshot, as a tree",
                             "  torchsnapshot ls /ckpt/step-100\n"
                             "  torchsnapshot ls --depth 2 --sort size s3://bucket/ckpt\n"
                             "  torchsnapshot ls --flat --dtype float32 /ckpt '*/optim/*exp_avg*'",
                             [&line] { return run_ls(line.common, line.ls); });
  ls->add_option("SNAPSHOT", line.ls.url, kUrlHelp)->required()->type_name("");
  ls->add_option("PATTERN", line.ls.patterns, kPatternHelp)->type_name("");
  ls->add_option("--dtype", line.ls.dtypes, "Only tensors of this dtype; may be repeated")
      ->type_name("DTYPE")
      ->allow_extra_args(false);
  ls->add_option("-r,--rank", line.ls.rank, "Only what this rank saved")
      ->check(unnamed(CLI::NonNegativeNumber))
      ->type_name("N");
  ls->add_option("-d,--depth", line.ls.depth, "Show N levels: 1 is the keys")
      ->check(unnamed(CLI::NonNegativeNumber))
      ->type_name("N");
  ls->add_option("--sort", line.ls.sort, "Order: saved (as in the program), name, or size (largest first)")
      ->check(one_of({"saved", "name", "size"}))
      ->type_name("ORDER");
  ls->add_flag("--flat", line.ls.flat, "One line for each leaf, with its whole path");
  ls->add_flag("--names", line.ls.names, "Only the paths of the leaves");

  CLI::App* info = add_command(app, line, "info", "Sum a snapshot up: who took it, sizes, checksums",
                               "  torchsnapshot info /ckpt/step-100\n  torchsnapshot info --json gs://bucket/ckpt",
                               [&line] { return run_info(line.common, line.info); });
  info->add_option("SNAPSHOT", line.info.url, kUrlHelp)->required()->type_name("");

  CLI::App* cat = add_command(app, line, "cat", "Show one entry: a value, or a summary of a tensor",
                              "  torchsnapshot cat /ckpt 0/progress/step\n"
                              "  torchsnapshot cat /ckpt model/weight            # the lowest rank that has it\n"
                              "  torchsnapshot cat --npy weight.npy /ckpt model/weight\n"
                              "  torchsnapshot cat --raw /ckpt 0/state/object > object.pt",
                              [&line] { return run_cat(line.common, line.cat); });
  cat->add_option("SNAPSHOT", line.cat.url, kUrlHelp)->required()->type_name("");
  cat->add_option("PATH", line.cat.path, "The entry, as ls --flat names it; the rank may be left out")
      ->required()
      ->type_name("");
  cat->add_option("-n,--first", line.cat.first, "How many elements to show (8)")
      ->check(unnamed(CLI::Range(0, 1'000'000)))
      ->type_name("N");
  cat->add_option("--npy", line.cat.npy, "Write the tensor as a numpy file; - is standard output")->type_name("FILE");
  cat->add_flag("--raw", line.cat.raw, "Write the stored bytes to standard output")->excludes("--npy");
  add_threads(cat, line);
  for (CLI::App* command : {ls, info, cat}) add_no_verify(command, line);

  CLI::App* verify = add_command(app, line, "verify", "Check that every byte is what was written",
                                 "  torchsnapshot verify /ckpt/step-100\n"
                                 "  torchsnapshot verify --quick s3://bucket/ckpt && echo complete",
                                 [&line] { return run_verify(line.common, line.verify); });
  verify->add_option("SNAPSHOT", line.verify.url, kUrlHelp)->required()->type_name("");
  verify->add_flag("--quick", line.verify.quick, "Only structure, presence and sizes; reads no data");
  add_threads(verify, line);

  CLI::App* diff = add_command(app, line, "diff", "Tell which entries of two snapshots differ",
                               "  torchsnapshot diff /ckpt/step-100 /ckpt/step-200\n"
                               "  torchsnapshot diff --rtol 1e-5 --atol 1e-8 A B 'model/*'",
                               [&line] { return run_diff(line.common, line.diff); });
  diff->add_option("A", line.diff.a, kUrlHelp)->required()->type_name("");
  diff->add_option("B", line.diff.b, "The one to compare it with")->required()->type_name("");
  diff->add_option("PATTERN", line.diff.patterns, kPatternHelp)->type_name("");
  diff->add_option("--rtol", line.diff.rtol, "Floats are equal when |a - b| <= atol + rtol * |b|")
      ->check(unnamed(CLI::NonNegativeNumber))
      ->type_name("X");
  diff->add_option("--atol", line.diff.atol, "See --rtol; without both, bytes are compared")
      ->check(unnamed(CLI::NonNegativeNumber))
      ->type_name("X");
  add_threads(diff, line);
  add_no_verify(diff, line);

  CLI::App* rm = add_command(app, line, "rm", "Remove a snapshot",
                             "  torchsnapshot rm /ckpt/step-100\n  torchsnapshot rm -y s3://bucket/ckpt",
                             [&line] { return run_rm(line.common, line.rm); });
  rm->add_option("SNAPSHOT", line.rm.url, kUrlHelp)->required()->type_name("");
  rm->add_flag("-y,--yes", line.rm.yes, "Don't ask");
  rm->add_flag("-f,--force", line.rm.force,
               "Also when the metadata can't be read: removes it, and leaves the data to prune");
  rm->add_flag("-n,--dry-run", line.rm.dry_run, "Only say what would be removed");

  CLI::App* prune = add_command(app, line, "prune", "Remove what dead takes left behind, never a running one's",
                                "  torchsnapshot prune --dry-run /ckpt/latest\n"
                                "  torchsnapshot prune --older-than 12h s3://bucket/ckpt",
                                [&line] { return run_prune(line.common, line.prune); });
  prune->add_option("SNAPSHOT", line.prune.url, kUrlHelp)->required()->type_name("");
  prune
      ->add_option("--older-than", line.prune.older_than,
                   "A take is dead when nothing was written to it for so long (1d); 0: when no process of it is known")
      ->type_name("TIME");
  prune->add_flag("-n,--dry-run", line.prune.dry_run, "Only say what would be removed");
}

Describe::Option describe(const CLI::Option& option) {
  Describe::Option described;
  for (const std::string& name : option.get_snames()) described.names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) described.names.push_back("--" + name);
  if (option.get_items_expected_max() > 0) described.value = option.get_type_name();
  described.text = option.get_description();
  static const std::map<std::string, std::vector<std::string>> kChoices = {{"--color", {"auto", "always", "never"}},
                                                                           {"--sort", {"saved", "name", "size"}}};
  const auto choices = kChoices.find(described.names.back());
  if (choices != kChoices.end()) described.choices = choices->second;
  return described;
}

Describe describe(const CLI::App& app) {
  Describe program;
  program.text = app.get_description();
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    Describe::Command described{command->get_name(), command->get_description(), "", command->get_footer(), {}};
    for (const CLI::Option* option : command->get_options()) {
      if (!option->get_positional()) {
        described.options.push_back(describe(*option));
        continue;
      }
      std::string name = option->get_single_name();
      if (option->get_items_expected_max() > 1) name += "...";
      if (!described.positionals.empty()) described.positionals += ' ';
      described.positionals += option->get_required() ? name : "[" + name + "]";
    }
    program.commands.push_back(std::move(described));
  }
  return program;
}

void finish_common(CommandLine& line) {
  if (line.color == "always") line.common.color = ColorMode::kAlways;
  if (line.color == "never") line.common.color = ColorMode::kNever;
  for (const std::string& option : line.storage_options) {
    const auto equals = option.find('=');
    if (equals == std::string::npos || equals == 0) {
      throw Error(ErrorCode::kInvalidArgument, "--option " + option + ": write KEY=VALUE");
    }
    line.common.storage[option.substr(0, equals)] = option.substr(equals + 1);
  }
}

int tell(const CommandLine& line, const char* code, const std::string& message) {
  if (line.common.json) {
    Json json;
    json.begin_object().key("error").begin_object().member("code", code).member("message", message);
    std::fputs(json.end_object().end_object().take().c_str(), stdout);
  }
  std::fprintf(stderr, "torchsnapshot: %s\n", printable(message).c_str());
  return kError;
}

}  // namespace

IoOptions io_options(const Common& common, ProgressBar& bar) {
  IoOptions io;
  io.io_concurrency = common.threads;
  io.checksums = common.verify;
  io.on_progress = [&bar](const Progress& progress) { bar.show(progress.bytes_done, progress.bytes_total); };
  io.on_notice = [&bar](const std::string& message) {
    bar.clear();
    std::fprintf(stderr, "torchsnapshot: %s\n", printable(message).c_str());
  };
  io.poll = [] {
    if (caught_signal != 0) throw Error(ErrorCode::kCancelled, "interrupted");
  };
  return io;
}

int run(int argc, char** argv) {
  CLI::App app("Looks into snapshots of PyTorch training state, checks them and tidies up.", "torchsnapshot");
  CommandLine line;
  app.set_version_flag("--version", "torchsnapshot " TORCHSNAPSHOT_VERSION);
  app.set_help_all_flag("--help-all", "The help of every command");
  app.require_subcommand(1);
  app.footer(
      "A SNAPSHOT is a path or a URL (fs://, s3://, gs://, as far as this build has them).\n"
      "Exit status: 0 fine, 1 something is corrupt or differs, 2 wrong usage or a failure to read or write.\n"
      "torchsnapshot COMMAND --help has the options and examples of a command.");
  add_commands(app, line);
  CLI::App* completion = app.add_subcommand("completion", "Print the completion script of a shell, or the manual page");
  completion->footer("Examples:\n  source <(torchsnapshot completion bash)\n  torchsnapshot completion man | man -l -");
  completion->add_option("SHELL", line.shell, "bash, zsh, fish, or man")
      ->required()
      ->check(one_of({"bash", "zsh", "fish", "man"}))
      ->type_name("");
  completion->callback([&] {
    line.run = [&] {
      Output out(ColorMode::kNever);
      out << completion_text(line.shell, describe(app));
      out.flush();
      return kFine;
    };
  });
  try {
    app.parse(argc, argv);
    finish_common(line);
    catch_signals();
    return line.run();
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kFine : kError;
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kCancelled && caught_signal != 0) {
      std::fputs("torchsnapshot: interrupted\n", stderr);
      return 128 + caught_signal;  // as a shell has it
    }
    return tell(line, std::string(to_string(error.code())).c_str(), error.what());
  } catch (const std::exception& error) {
    return tell(line, "INTERNAL", error.what());
  }
}

}  // namespace torchsnapshot::cli
