#include "auth/environment.h"

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "net/encoding.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::size_t kLargestFile = 1 << 20;

}  // namespace

Environment Environment::of_process() {
  return {[](const std::string& name) -> std::optional<std::string> {
    const char* const value = std::getenv(name.c_str());
    if (value == nullptr || *value == '\0') return std::nullopt;
    return value;
  }};
}

std::string Environment::expand(const std::string& path) const {
  if (path != "~" && !path.starts_with("~/")) return path;
  return get_or("HOME", "/") + path.substr(1);
}

std::optional<std::string> read_credentials_file(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    if (errno == ENOENT || errno == ENOTDIR) return std::nullopt;
    throw errno_error(errno != 0 ? errno : EIO, "open " + path);
  }
  std::string content(kLargestFile + 1, '\0');
  file.read(content.data(), static_cast<std::streamsize>(content.size()));
  if (file.bad()) throw Error(ErrorCode::kIo, "read " + path + ": failed");
  content.resize(static_cast<std::size_t>(file.gcount()));
  if (content.size() > kLargestFile)
    throw Error(ErrorCode::kInvalidArgument, path + " is too large for what it should be");
  return content;
}

IniSections parse_ini(std::string_view text) {
  IniSections sections;
  std::map<std::string, std::string>* section = nullptr;
  while (!text.empty()) {
    const auto end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    const bool is_indented = line.starts_with(' ') || line.starts_with('\t');
    line = trim_ascii(line);
    if (line.empty() || line.front() == '#' || line.front() == ';') continue;
    if (line.front() == '[') {
      std::string_view name = trim_ascii(line.substr(1, std::min(line.find(']'), line.size()) - 1));
      if (name.starts_with("profile ") || name.starts_with("profile\t")) name = trim_ascii(name.substr(8));
      section = &sections[std::string(name)];
      continue;
    }
    const auto equals = line.find('=');
    if (is_indented || section == nullptr || equals == std::string_view::npos) continue;
    std::string_view value = line.substr(equals + 1);
    for (const std::string_view comment : {" #", " ;", "\t#", "\t;"}) value = value.substr(0, value.find(comment));
    section->insert_or_assign(to_lower_ascii(trim_ascii(line.substr(0, equals))), std::string(trim_ascii(value)));
  }
  return sections;
}

}  // namespace torchsnapshot
