// Checksum sidecars: any bytes are an Error, or tables that are written as the same bytes.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>

#include "integrity/checksum_sidecar.h"
#include "integrity/crc32c.h"
#include "torchsnapshot/error.h"

using namespace torchsnapshot;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  if (size >= 4) {
    // Their own checksum is made to fit, or nothing behind it would ever be reached.
    const std::string_view body = std::string_view(bytes).substr(0, size - 4);
    const std::uint32_t crc = crc32c(0, std::as_bytes(std::span(body)));
    for (std::size_t i = 0; i < 4; ++i) bytes[size - 4 + i] = static_cast<char>(crc >> (8 * i));
  }
  try {
    if (serialize_checksums(parse_checksums(bytes, "sidecar")) != bytes) std::abort();
  } catch (const Error&) {
    return 0;
  }
  return 0;
}
