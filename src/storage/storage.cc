#include "torchsnapshot/storage.h"

#include <utility>

#include "torchsnapshot/error.h"

namespace torchsnapshot {

std::vector<ObjectInfo> Storage::list_objects(const std::string& prefix) {
  const std::vector<std::string> locations = list(prefix);
  std::vector<ObjectInfo> objects;
  objects.reserve(locations.size());
  try {
    const auto all = sizes(locations, {});
    for (std::size_t i = 0; i < locations.size(); ++i) objects.push_back({locations[i], all[i], std::nullopt});
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kNotFound) throw;
    objects.clear();
    for (const std::string& location : locations) {
      try {
        objects.push_back({location, sizes(std::span(&location, 1), {}).front(), std::nullopt});
      } catch (const Error& of_one) {
        if (of_one.code() != ErrorCode::kNotFound) throw;
      }
    }
  }
  return objects;
}

std::vector<UnfinishedObject> Storage::list_unfinished(const std::string&) {
  return {};
}

void Storage::remove_unfinished(std::span<const UnfinishedObject>) {}

}  // namespace torchsnapshot
