#include "coord/peer_error.h"

namespace torchsnapshot {

std::string encode_error(const Error& error) {
  return std::string(to_string(error.code())) + " " + error.what();
}

std::string encode_error(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& known) {
    return encode_error(known);
  } catch (const std::exception& other) {
    return encode_error(Error(ErrorCode::kInternal, other.what()));
  } catch (...) {
    return encode_error(Error(ErrorCode::kInternal, "unknown error"));
  }
}

Error decode_error(std::int64_t rank, std::string_view text) {
  const std::size_t space = text.find(' ');
  const std::string_view name = text.substr(0, space);
  const std::string_view message = space == std::string_view::npos ? std::string_view() : text.substr(space + 1);
  ErrorCode code = ErrorCode::kInternal;
  for (int i = 0; i <= static_cast<int>(ErrorCode::kInternal); ++i) {
    if (to_string(static_cast<ErrorCode>(i)) == name) code = static_cast<ErrorCode>(i);
  }
  return {code, "rank " + std::to_string(rank) + ": " + std::string(message)};
}

}  // namespace torchsnapshot
