// What credentials are looked up in: environment variables and files. A value, so that a test brings its own.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace torchsnapshot {

struct Environment {
  /// The value of a variable; nothing when it is not set or empty.
  std::function<std::optional<std::string>(const std::string& name)> variable;

  /// That of this process.
  static Environment of_process();

  [[nodiscard]] std::optional<std::string> get(const std::string& name) const { return variable(name); }
  [[nodiscard]] std::string get_or(const std::string& name, const std::string& otherwise) const {
    return variable(name).value_or(otherwise);
  }
  /// A path with "~/" at its front replaced by HOME.
  [[nodiscard]] std::string expand(const std::string& path) const;
};

/// The content of a file of at most 1 MiB; nothing when there is none. Throws Error for one that can't be read.
std::optional<std::string> read_credentials_file(const std::string& path);

/// Sections of an INI file as the AWS tools read it: "[name]", "key = value", comments at the front of a line by '#' or
/// ';' and behind a value by " #" or " ;". Indented lines belong to the key above and are skipped. Names of sections
/// keep their spelling, without "profile ". Never fails: a line that is none of these is skipped.
using IniSections = std::map<std::string, std::map<std::string, std::string>>;
IniSections parse_ini(std::string_view text);

}  // namespace torchsnapshot
