#include <string>

#include "cli/commands.h"

namespace torchsnapshot::cli {
namespace {

std::string quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  }
  return out + "'";
}

std::string names_of(const Describe& program) {
  std::string names;
  for (const Describe::Command& command : program.commands) names += (names.empty() ? "" : " ") + command.name;
  return names;
}

std::string bash(const Describe& program) {
  std::string out =
      "# bash completion of torchsnapshot: source <(torchsnapshot completion bash)\n"
      "_torchsnapshot() {\n"
      "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} words=\n"
      "  COMPREPLY=()\n"
      "  if ((COMP_CWORD == 1)); then\n"
      "    COMPREPLY=($(compgen -W \"" +
      names_of(program) +
      " --help --version\" -- \"$cur\"))\n"
      "    return\n"
      "  fi\n"
      "  case $prev in\n";
  std::string seen;
  for (const Describe::Command& command : program.commands) {
    for (const Describe::Option& option : command.options) {
      const std::string& name = option.names.back();
      if (option.value.empty() || seen.find(" " + name + " ") != std::string::npos) continue;
      seen += " " + name + " ";
      std::string patterns;
      for (const std::string& each : option.names) patterns += (patterns.empty() ? "" : "|") + each;
      // The same letter may be a flag elsewhere; long names mean the same everywhere.
      if (option.names.size() > 1) patterns = name;
      std::string choices;
      for (const std::string& choice : option.choices) choices += (choices.empty() ? "" : " ") + choice;
      out += "    " + patterns + ")\n";
      if (option.value == "FILE") {
        out += "      COMPREPLY=($(compgen -f -- \"$cur\"))\n";
      } else if (!choices.empty()) {
        out += "      COMPREPLY=($(compgen -W \"" + choices + "\" -- \"$cur\"))\n";
      }
      out += "      return ;;\n";
    }
  }
  out += "  esac\n  case $command in\n";
  for (const Describe::Command& command : program.commands) {
    std::string words;
    for (const Describe::Option& option : command.options) {
      for (const std::string& name : option.names) words += (words.empty() ? "" : " ") + name;
    }
    if (command.name == "completion") words += " bash zsh fish man";
    out += "    " + command.name + ") words=\"" + words + "\" ;;\n";
  }
  out +=
      "  esac\n"
      "  if [[ $cur == -* || $command == completion ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
      "  elif [[ $command == cat && $prev != -* && $prev != cat ]]; then\n"
      "    local IFS=$'\\n'\n"
      "    COMPREPLY=($(compgen -W \"$(\"${COMP_WORDS[0]}\" ls --names \"$prev\" 2>/dev/null)\" -- \"$cur\"))\n"
      "  else\n"
      "    COMPREPLY=($(compgen -f -- \"$cur\"))\n"
      "    compopt -o filenames 2>/dev/null\n"
      "  fi\n"
      "}\n"
      "complete -F _torchsnapshot torchsnapshot\n";
  return out;
}

std::string zsh(const Describe& program) {
  std::string out =
      "#compdef torchsnapshot\n"
      "# zsh completion of torchsnapshot: source <(torchsnapshot completion zsh), after compinit\n"
      "_torchsnapshot() {\n"
      "  local -a commands=(\n";
  for (const Describe::Command& command : program.commands) {
    out += "    " + quoted(command.name + ":" + command.text) + "\n";
  }
  out +=
      "  )\n"
      "  if ((CURRENT == 2)); then\n"
      "    _describe command commands\n"
      "    return\n"
      "  fi\n"
      "  local command=${words[2]}\n"
      "  case $command in\n";
  for (const Describe::Command& command : program.commands) {
    out += "    " + command.name + ")\n      _arguments -s";
    for (const Describe::Option& option : command.options) {
      for (const std::string& name : option.names) {
        std::string text;
        for (const char c : option.text) {
          if (c == '[' || c == ']' || c == ':') text += '\\';
          text += c;
        }
        std::string spec = name;
        spec.append("[").append(text).append("]");
        if (!option.value.empty()) {
          spec.append(":").append(option.value).append(":");
          for (const std::string& choice : option.choices)
            spec += (choice == option.choices.front() ? "(" : " ") + choice;
          spec += option.choices.empty() ? (option.value == "FILE" ? "_files" : "") : ")";
        }
        out += " \\\n        " + quoted("*" + spec);
      }
    }
    out += command.name == "completion" ? " \\\n        '2:shell:(bash zsh fish man)' ;;\n"
                                        : " \\\n        '*:file:_files' ;;\n";
  }
  out += "  esac\n}\ncompdef _torchsnapshot torchsnapshot\n";
  return out;
}

std::string fish(const Describe& program) {
  std::string out = "# fish completion of torchsnapshot: torchsnapshot completion fish | source\n";
  const std::string names = names_of(program);
  for (const Describe::Command& command : program.commands) {
    out += "complete -c torchsnapshot -n 'not __fish_seen_subcommand_from " + names + "' -f -a " + command.name +
           " -d " + quoted(command.text) + "\n";
    for (const Describe::Option& option : command.options) {
      out += "complete -c torchsnapshot -n '__fish_seen_subcommand_from " + command.name + "'";
      for (const std::string& name : option.names) {
        out += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
      }
      if (!option.value.empty()) out += option.value == "FILE" ? " -r -F" : " -x";
      std::string choices;
      for (const std::string& choice : option.choices) choices += (choices.empty() ? "" : " ") + choice;
      if (!choices.empty()) out += " -a '" + choices + "'";
      out += " -d " + quoted(option.text) + "\n";
    }
  }
  return out + "complete -c torchsnapshot -n '__fish_seen_subcommand_from completion' -f -a 'bash zsh fish man'\n";
}

/// Text for roff: nothing in it is a command.
std::string roff(const std::string& text) {
  std::string out;
  bool at_start = true;
  for (const char c : text) {
    if (at_start && (c == '.' || c == '\'')) out += "\\&";
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else {
      out += c;
    }
    at_start = c == '\n';
  }
  return out;
}

std::string man(const Describe& program) {
  std::string out =
      ".TH TORCHSNAPSHOT 1 \"\" \"torchsnapshot " TORCHSNAPSHOT_VERSION
      "\" \"User Commands\"\n"
      ".SH NAME\ntorchsnapshot \\- look into snapshots of PyTorch training state, check them and tidy up\n"
      ".SH SYNOPSIS\n.B torchsnapshot\n.I COMMAND\n[\\fIOPTION\\fR...] \\fISNAPSHOT\\fR ...\n"
      ".SH DESCRIPTION\n" +
      roff(program.text) +
      "\n"
      "A SNAPSHOT is a path or a URL (fs://, s3://, gs://, as far as the build has them).\n"
      "Every command takes \\fB\\-\\-json\\fR and \\fB\\-\\-help\\fR.\n.SH COMMANDS\n";
  for (const Describe::Command& command : program.commands) {
    out += ".SS " + roff(command.name + " " + command.positionals) + "\n" + roff(command.text) + ".\n";
    for (const Describe::Option& option : command.options) {
      std::string names;
      for (const std::string& name : option.names) names += (names.empty() ? "\\fB" : ", \\fB") + roff(name) + "\\fR";
      out += ".TP\n" + names + (option.value.empty() ? "" : " \\fI" + roff(option.value) + "\\fR") + "\n" +
             roff(option.text) + "\n";
    }
    out += ".PP\n.nf\n" + roff(command.footer) + "\n.fi\n";
  }
  return out +
         ".SH EXIT STATUS\n0 fine, 1 something is corrupt or differs, 2 wrong usage or a failure to read or write.\n"
         ".SH ENVIRONMENT\n.TP\n\\fBNO_COLOR\\fR\nno colours, whatever it is set to\n";
}

}  // namespace

std::string completion_text(const std::string& shell, const Describe& program) {
  if (shell == "bash") return bash(program);
  if (shell == "zsh") return zsh(program);
  if (shell == "fish") return fish(program);
  return man(program);
}

}  // namespace torchsnapshot::cli
