// The little XML that object stores speak: elements and text. No DTD (so no entities to expand), no attributes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace torchsnapshot {

struct XmlElement {
  std::string name;  ///< without a namespace prefix
  std::string text;  ///< the character data directly in it, all pieces joined, as it is
  std::vector<XmlElement> children;

  /// The first child of that name, or null.
  [[nodiscard]] const XmlElement* child(std::string_view child_name) const noexcept;
  /// The text of the first child of that name, or "".
  [[nodiscard]] std::string_view child_text(std::string_view child_name) const noexcept;
};

/// The root element. Throws Error(kCorrupt) for what is malformed, nested deeper than 64 levels, or has a DTD.
XmlElement parse_xml(std::string_view text);

/// A text as the content of an element. Control characters that XML can't carry are Error(kInvalidArgument).
std::string xml_escape(std::string_view text);

}  // namespace torchsnapshot
