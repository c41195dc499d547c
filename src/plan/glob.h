// Shell patterns as Python's fnmatch knows them.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

namespace torchsnapshot {

/// A pattern taken apart once, to be matched against many texts. Works on code points; bytes that are not UTF-8
/// count as one each. Immutable, so safe to share between threads.
class Glob {
 public:
  explicit Glob(std::string_view pattern);
  /// Python's fnmatch.fnmatchcase(text, pattern). Time is at most the product of both lengths.
  [[nodiscard]] bool matches(std::string_view text) const;

 private:
  enum class Kind { kLiteral, kAny, kSet, kStar };
  struct Token {
    Kind kind = Kind::kAny;
    char32_t literal = 0;                                 ///< kLiteral
    bool negated = false;                                 ///< kSet
    std::vector<std::pair<char32_t, char32_t>> ranges{};  ///< kSet: first and last of each
    [[nodiscard]] bool accepts(char32_t symbol) const;
  };

  static Token parse_set(std::u32string_view body);

  std::vector<Token> tokens_;
};

}  // namespace torchsnapshot
