// Paths of the manifest: components joined by '/', with '%' and '/' escaped inside a component.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace torchsnapshot {

/// '%' becomes "%25" and '/' becomes "%2F"; every other byte stays.
std::string encode_component(std::string_view component);
/// Full percent-decoding; a '%' that no two hex digits follow stays.
std::string decode_component(std::string_view encoded);
/// "a/b" of "a" and "b"; "b" when `parent` is empty. Neither is escaped here.
std::string join_path(std::string_view parent, std::string_view child);
/// The part before the last '/' ("" without one), and the part after it.
std::string_view parent_path(std::string_view path) noexcept;
std::string_view last_component(std::string_view path) noexcept;

/// Throws Error(kCorrupt) unless `location` stays below the root whatever the root is: not empty, not absolute,
/// no NUL, and its ".." never climb above the start.
void check_location(std::string_view location);

/// Up to `count` of `candidates` that are nearest to `wanted` in edit distance, nearest first, none that is
/// further than a third of its length away.
std::vector<std::string> near_misses(std::string_view wanted, const std::vector<std::string>& candidates,
                                     std::size_t count);

}  // namespace torchsnapshot
