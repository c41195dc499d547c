#include "core/path_codec.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <optional>

#include "core/text.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

int hex_digit(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

/// Levenshtein distance in bytes, or nothing when it is above `limit`.
std::optional<std::size_t> edit_distance(std::string_view a, std::string_view b, std::size_t limit,
                                         std::vector<std::size_t>& row) {
  while (!a.empty() && !b.empty() && a.front() == b.front()) {
    a.remove_prefix(1);
    b.remove_prefix(1);
  }
  while (!a.empty() && !b.empty() && a.back() == b.back()) {
    a.remove_suffix(1);
    b.remove_suffix(1);
  }
  if (a.size() > b.size()) std::swap(a, b);
  if (b.size() - a.size() > limit) return std::nullopt;
  row.resize(a.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t j = 0; j < b.size(); ++j) {
    std::size_t diagonal = row[0];
    row[0] = j + 1;
    std::size_t least = row[0];
    for (std::size_t i = 0; i < a.size(); ++i) {
      const std::size_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[i + 1];
      row[i + 1] = std::min({substituted, diagonal + 1, row[i] + 1});
      least = std::min(least, row[i + 1]);
    }
    if (least > limit) return std::nullopt;
  }
  if (row[a.size()] > limit) return std::nullopt;
  return row[a.size()];
}

[[noreturn]] void bad_location(std::string_view location, std::string_view why) {
  throw Error(ErrorCode::kCorrupt, "location " + quote_text(location) + " " + std::string(why));
}

}  // namespace

std::string encode_component(std::string_view component) {
  std::string out;
  out.reserve(component.size());
  for (const char c : component) {
    if (c == '%') {
      out += "%25";
    } else if (c == '/') {
      out += "%2F";
    } else {
      out += c;
    }
  }
  return out;
}

std::string decode_component(std::string_view encoded) {
  std::string out;
  out.reserve(encoded.size());
  for (std::size_t at = 0; at < encoded.size(); ++at) {
    if (encoded[at] == '%' && at + 2 < encoded.size()) {
      const int high = hex_digit(encoded[at + 1]);
      const int low = hex_digit(encoded[at + 2]);
      if (high >= 0 && low >= 0) {
        out += static_cast<char>(high * 16 + low);
        at += 2;
        continue;
      }
    }
    out += encoded[at];
  }
  return out;
}

std::string join_path(std::string_view parent, std::string_view child) {
  if (parent.empty()) return std::string(child);
  std::string out;
  out.reserve(parent.size() + 1 + child.size());
  out += parent;
  out += '/';
  out += child;
  return out;
}

std::string_view parent_path(std::string_view path) noexcept {
  const std::size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? std::string_view() : path.substr(0, slash);
}

std::string_view last_component(std::string_view path) noexcept {
  const std::size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

void check_location(std::string_view location) {
  if (location.empty()) bad_location(location, "is empty");
  if (location.front() == '/') bad_location(location, "is absolute; it must lie inside the snapshot");
  if (location.find('\0') != std::string_view::npos) bad_location(location, "contains a NUL byte");
  std::size_t depth = 0;
  for (std::size_t begin = 0; begin <= location.size();) {
    const std::size_t end = std::min(location.find('/', begin), location.size());
    const std::string_view component = location.substr(begin, end - begin);
    if (component == "..") {
      if (depth == 0) bad_location(location, "leaves the snapshot");
      --depth;
    } else if (!component.empty() && component != ".") {
      ++depth;
    }
    begin = end + 1;
  }
  if (depth == 0) bad_location(location, "names the folder of the snapshot, not an object in it");
}

std::vector<std::string> near_misses(std::string_view wanted, const std::vector<std::string>& candidates,
                                     std::size_t count) {
  struct Hit {
    std::size_t distance;
    std::size_t index;
  };
  std::vector<Hit> hits;  // the best so far, nearest first; among equals the earlier candidate
  std::vector<std::size_t> row;
  for (std::size_t i = 0; i < candidates.size() && count > 0; ++i) {
    std::size_t limit = wanted.size() / 3;
    if (hits.size() == count) {
      if (hits.back().distance == 0) break;
      limit = std::min(limit, hits.back().distance - 1);
    }
    const auto distance = edit_distance(wanted, candidates[i], limit, row);
    if (!distance) continue;
    if (hits.size() == count) hits.pop_back();
    const auto place = std::upper_bound(hits.begin(), hits.end(), *distance,
                                        [](std::size_t value, const Hit& hit) { return value < hit.distance; });
    hits.insert(place, Hit{*distance, i});
  }
  std::vector<std::string> names;
  names.reserve(hits.size());
  for (const Hit& hit : hits) names.push_back(candidates[hit.index]);
  return names;
}

}  // namespace torchsnapshot
