#include "storage/location.h"

#include <algorithm>

#include "core/path_codec.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

// Not <cctype>: what a letter is must not depend on the locale.
bool is_letter(char c) noexcept {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
bool is_scheme_char(char c) noexcept {
  return is_letter(c) || (c >= '0' && c <= '9') || c == '+' || c == '-' || c == '.';
}
char to_lower(char c) noexcept {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

}  // namespace

std::string normalize_location(std::string_view location) {
  check_location(location);
  std::string normal;
  for (std::size_t begin = 0; begin <= location.size();) {
    const std::size_t end = std::min(location.find('/', begin), location.size());
    const std::string_view component = location.substr(begin, end - begin);
    begin = end + 1;
    if (component.empty() || component == ".") continue;
    if (component == "..") {
      const auto slash = normal.rfind('/');
      normal.resize(slash == std::string::npos ? 0 : slash);
      continue;
    }
    if (!normal.empty()) normal += '/';
    normal += component;
  }
  if (normal.empty()) {
    throw Error(ErrorCode::kCorrupt, "the location '" + std::string(location) + "' names a folder, not an object");
  }
  return normal;
}

std::vector<std::string_view> parent_folders(std::string_view location) {
  std::vector<std::string_view> parents;
  for (auto slash = location.rfind('/'); slash != std::string_view::npos; slash = location.rfind('/')) {
    location = location.substr(0, slash);
    parents.push_back(location);
  }
  return parents;
}

StorageUrl parse_storage_url(std::string_view url) {
  if (url.empty()) throw Error(ErrorCode::kInvalidArgument, "the path of a snapshot is empty");
  if (url.find('\0') != std::string_view::npos) {
    throw Error(ErrorCode::kInvalidArgument, "the path of a snapshot has a NUL character in it");
  }
  constexpr std::string_view kSeparator = "://";
  const auto colon = url.find(kSeparator);
  const std::string_view scheme = url.substr(0, colon == std::string_view::npos ? 0 : colon);
  if (scheme.empty() || !is_letter(scheme.front()) || !std::all_of(scheme.begin(), scheme.end(), is_scheme_char)) {
    return {"fs", std::string(url)};
  }
  StorageUrl parts;
  std::transform(scheme.begin(), scheme.end(), std::back_inserter(parts.scheme), to_lower);
  parts.rest = std::string(url.substr(colon + kSeparator.size()));
  if (parts.rest.empty()) {
    throw Error(ErrorCode::kInvalidArgument, "'" + std::string(url) + "': nothing follows \"://\"");
  }
  return parts;
}

}  // namespace torchsnapshot
