// Primitives in the textual form of the manifest.
#pragma once

#include "torchsnapshot/manifest.h"
#include "torchsnapshot/value.h"

namespace torchsnapshot {

/// The entry of an Integer, bool, double, std::string or Bytes. Other values: Error(kInternal).
PrimitiveEntry make_primitive_entry(const Value& value, bool replicated);
/// The inverse. Throws Error(kCorrupt) when the text is not of the type.
Value primitive_value(const PrimitiveEntry& entry);
/// Only the check of primitive_value, without an allocation unless it throws.
void check_primitive(const PrimitiveEntry& entry);

std::string base64_encode(std::string_view bytes);
/// Throws Error(kCorrupt) for anything but canonical padded base64.
std::string base64_decode(std::string_view text);

/// As Python's repr of a float: shortest digits that read back ("0.1", "1e-07", "nan", "-0.0", "1e+16").
std::string python_float_repr(double value);

}  // namespace torchsnapshot
