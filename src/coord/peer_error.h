// Errors that travel from one rank to the others.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <string_view>

#include "torchsnapshot/error.h"

namespace torchsnapshot {

/// An error as text for another rank: "CODE message". What is no Error gets the code INTERNAL.
std::string encode_error(const Error& error);
std::string encode_error(const std::exception_ptr& error);
/// The error of rank `rank`, with the code it had there and "rank N: " in front of the message.
Error decode_error(std::int64_t rank, std::string_view text);

}  // namespace torchsnapshot
