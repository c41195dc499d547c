// SHA-256 and HMAC-SHA-256 (FIPS 180-4, FIPS 198-1): what request signatures are made of. In software, about 0.3 GB/s:
// signatures hash a few hundred bytes; bodies go out unsigned over TLS.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace torchsnapshot {

using Sha256Digest = std::array<std::uint8_t, 32>;

Sha256Digest sha256(std::span<const std::uint8_t> data) noexcept;
Sha256Digest sha256(std::string_view text) noexcept;

Sha256Digest hmac_sha256(std::span<const std::uint8_t> key, std::string_view message);

}  // namespace torchsnapshot
