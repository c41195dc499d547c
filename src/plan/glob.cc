#include "plan/glob.h"

#include <algorithm>
#include <cstddef>
#include <string>

#include "plan/write_plan.h"

namespace torchsnapshot {
namespace {

/// Code points of UTF-8 text; a byte that belongs to no valid sequence becomes a symbol outside of Unicode.
std::u32string decode(std::string_view text) {
  constexpr char32_t kInvalid = 0x110000;
  std::u32string symbols;
  symbols.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const std::size_t length = lead < 0x80 ? 1 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 0;
    bool valid = length != 0 && lead < 0xF8 && length <= text.size() - i;
    char32_t symbol = length <= 1 ? lead : lead & (0x7FU >> length);
    for (std::size_t k = 1; valid && k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      valid = (next & 0xC0) == 0x80;
      symbol = (symbol << 6) | (next & 0x3FU);
    }
    symbols.push_back(valid ? symbol : kInvalid + lead);
    i += valid ? length : 1;
  }
  return symbols;
}

/// Cuts the inside of a set at the hyphens that make ranges: between two pieces lies a range, from the last symbol
/// of the first to the first symbol of the second. A hyphen at either end, or right after a range, is itself.
std::vector<std::u32string> split_at_ranges(std::u32string_view body) {
  std::vector<std::u32string> pieces;
  std::size_t begin = 0;
  std::size_t search = body.front() == U'!' ? 2 : 1;
  while (true) {
    const std::size_t hyphen = body.find(U'-', search);
    if (hyphen == std::u32string_view::npos) break;
    pieces.emplace_back(body.substr(begin, hyphen - begin));
    begin = hyphen + 1;
    search = hyphen + 3;
  }
  if (begin < body.size()) {
    pieces.emplace_back(body.substr(begin));
  } else {
    pieces.back() += U'-';
  }
  // A range that runs backwards is empty: its two ends vanish, and what is around them grows together.
  for (std::size_t k = pieces.size() - 1; k > 0; --k) {
    if (pieces[k - 1].back() > pieces[k].front()) {
      pieces[k - 1].pop_back();
      pieces[k - 1] += pieces[k].substr(1);
      pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(k));
    }
  }
  return pieces;
}

}  // namespace

bool Glob::Token::accepts(char32_t symbol) const {
  switch (kind) {
    case Kind::kLiteral:
      return symbol == literal;
    case Kind::kSet:
      return negated != std::any_of(ranges.begin(), ranges.end(), [symbol](const auto& range) {
               return range.first <= symbol && symbol <= range.second;
             });
    default:
      return true;
  }
}

Glob::Token Glob::parse_set(std::u32string_view body) {
  std::vector<std::u32string> pieces = split_at_ranges(body);
  Token token{Kind::kSet};
  // The '!' counts after empty ranges are gone. As a piece of its own it no longer begins a range: the hyphen that
  // follows is then itself.
  if (pieces.front().starts_with(U'!')) {
    token.negated = true;
    pieces.front().erase(0, 1);
    if (pieces.front().empty() && pieces.size() > 1) {
      pieces.front() = U'-' + pieces[1];
      pieces.erase(pieces.begin() + 1);
    }
  }
  for (std::size_t k = 0; k < pieces.size(); ++k) {
    for (const char32_t symbol : pieces[k]) token.ranges.emplace_back(symbol, symbol);
    if (k > 0) token.ranges.emplace_back(pieces[k - 1].back(), pieces[k].front());
  }
  return token;
}

Glob::Glob(std::string_view pattern) {
  const std::u32string symbols = decode(pattern);
  const std::u32string_view view = symbols;
  for (std::size_t i = 0; i < view.size(); ++i) {
    if (view[i] == U'*') {
      if (tokens_.empty() || tokens_.back().kind != Kind::kStar) tokens_.push_back({Kind::kStar});
    } else if (view[i] == U'?') {
      tokens_.push_back({Kind::kAny});
    } else if (view[i] == U'[') {
      std::size_t end = i + 1;
      if (end < view.size() && view[end] == U'!') ++end;
      if (end < view.size() && view[end] == U']') ++end;  // a ']' that comes first is a member
      end = view.find(U']', end);
      if (end == std::u32string_view::npos) {
        tokens_.push_back({Kind::kLiteral, U'['});
      } else {
        tokens_.push_back(parse_set(view.substr(i + 1, end - i - 1)));
        i = end;
      }
    } else {
      tokens_.push_back({Kind::kLiteral, view[i]});
    }
  }
}

bool Glob::matches(std::string_view text) const {
  const std::u32string symbols = decode(text);
  std::size_t at = 0;
  std::size_t token = 0;
  std::size_t star = tokens_.size();  // the last star met; none yet
  std::size_t star_end = 0;           // first symbol after what that star took
  while (at < symbols.size()) {
    if (token < tokens_.size() && tokens_[token].kind == Kind::kStar) {
      star = token++;
      star_end = at;
    } else if (token < tokens_.size() && tokens_[token].accepts(symbols[at])) {
      ++token;
      ++at;
    } else if (star < tokens_.size()) {
      token = star + 1;
      at = ++star_end;
    } else {
      return false;
    }
  }
  while (token < tokens_.size() && tokens_[token].kind == Kind::kStar) ++token;
  return token == tokens_.size();
}

bool glob_match(std::string_view pattern, std::string_view text) {
  return Glob(pattern).matches(text);
}

}  // namespace torchsnapshot
