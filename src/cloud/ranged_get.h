// Reads that both APIs make in the same way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stop_token>
#include <string>

#include "cloud/object_api.h"

namespace torchsnapshot {

/// The whole content. `get`: the request for it.
std::string ranged_get_all(StoreClient& client, const StoreRequest& get, std::uint64_t limit,
                           const std::stop_token& stop);
/// The first bytes, and what there is to know. `version_header`: the response header that names the version.
ObjectFacts ranged_get_front(StoreClient& client, const StoreRequest& get, std::string_view version_header,
                             std::span<std::byte> out, std::size_t& count, const std::stop_token& stop);
/// As ObjectApi::get_range. `get` carries the condition on the version.
void ranged_get(StoreClient& client, const StoreRequest& get, std::uint64_t offset, std::span<std::byte> out,
                const PlaceBytes& place, const std::stop_token& stop);

}  // namespace torchsnapshot
