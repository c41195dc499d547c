// Names of objects and of places, as pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace torchsnapshot {

/// The one form of a location: components joined by single '/', without "." and "..". "a//./b/../c" becomes
/// "a/c". Throws Error(kCorrupt) as check_location does, and when nothing is left ("a/..").
std::string normalize_location(std::string_view location);

/// The folders that `location` (normalized) lies in, the nearest first: "a/b/c" has "a/b" and "a".
std::vector<std::string_view> parent_folders(std::string_view location);

/// A URL in its two parts. A text without "SCHEME://" is a path: scheme "fs".
struct StorageUrl {
  std::string scheme;  ///< lower case
  std::string rest;    ///< what follows "://", as it is
  friend bool operator==(const StorageUrl&, const StorageUrl&) = default;
};

/// Splits a URL. A scheme is a letter and then letters, digits, '+', '-' or '.'; anything else before "://"
/// belongs to a path ("a/b://c").
/// Throws Error(kInvalidArgument) for an empty URL, one that ends at "://", and one with a NUL.
StorageUrl parse_storage_url(std::string_view url);

}  // namespace torchsnapshot
