#include "cli/terminal.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <iostream>
#include <utility>

#include "core/text.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot::cli {
namespace {

constexpr std::size_t kBufferBytes = 1 << 16;

bool wants_color(ColorMode mode) {
  if (mode != ColorMode::kAuto) return mode == ColorMode::kAlways;
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  return ::isatty(STDOUT_FILENO) == 1 && (no_color == nullptr || *no_color == '\0') &&
         (term == nullptr || std::strcmp(term, "dumb") != 0);
}

/// Characters of valid UTF-8, which is near enough to columns.
std::size_t width_of(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
}

std::string duration_text(double seconds) {
  const auto whole = static_cast<std::uint64_t>(std::llround(seconds));
  std::array<char, 32> text{};
  if (whole >= 3600) {
    std::snprintf(text.data(), text.size(), "%llu:%02llu:%02llu", static_cast<unsigned long long>(whole / 3600),
                  static_cast<unsigned long long>(whole / 60 % 60), static_cast<unsigned long long>(whole % 60));
  } else {
    std::snprintf(text.data(), text.size(), "%llu:%02llu", static_cast<unsigned long long>(whole / 60),
                  static_cast<unsigned long long>(whole % 60));
  }
  return text.data();
}

}  // namespace

Output::Output(ColorMode mode) : colored_(wants_color(mode)) {}

Output& Output::operator<<(std::string_view text) {
  buffer_ += text;
  if (buffer_.size() >= kBufferBytes) flush();
  return *this;
}

void Output::write(const void* data, std::size_t size) {
  flush();
  if (size > 0 && std::fwrite(data, 1, size, stdout) != size) throw errno_error(errno, "write to standard output");
}

void Output::flush() {
  const std::string text = std::exchange(buffer_, {});
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw errno_error(errno, "write to standard output");
  }
}

std::string Output::styled(std::string_view text, const char* code) const {
  if (!colored_ || text.empty()) return std::string(text);
  return std::string("\x1b[") + code + "m" + std::string(text) + "\x1b[0m";
}

ProgressBar::ProgressBar(std::string label)
    : label_(std::move(label)), enabled_(::isatty(STDERR_FILENO) == 1), start_(std::chrono::steady_clock::now()) {}

void ProgressBar::show(std::uint64_t done, std::uint64_t total) {
  if (!enabled_ || total == 0) return;
  constexpr std::size_t kCells = 24;
  done = std::min(done, total);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const double part = static_cast<double>(done) / static_cast<double>(total);
  const auto cells = static_cast<std::size_t>(part * kCells);
  std::string line = "\r" + label_ + " [" + std::string(cells, '#') + std::string(kCells - cells, '-') + "] " +
                     pad_left(std::to_string(static_cast<int>(part * 100)), 3) + " %  " + format_bytes(done) + " of " +
                     format_bytes(total);
  if (done > 0 && seconds > 0) {
    const double rate = static_cast<double>(done) / seconds;
    line += "  " + format_bytes(static_cast<std::uint64_t>(rate)) + "/s";
    if (done < total) line += "  " + duration_text(static_cast<double>(total - done) / rate) + " left";
  }
  line += "\x1b[K";
  const std::lock_guard lock(mutex_);
  shown_ = true;
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
}

void ProgressBar::clear() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(shown_, false)) {
    std::fputs("\r\x1b[K", stderr);
    std::fflush(stderr);
  }
}

std::string printable(std::string_view text) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = utf8_sequence(text, at, Surrogates::kRefuse);
    const char32_t symbol = length == 0 ? 0 : decode_utf8(text, at, length);
    // Controls of both sets, and the marks that turn the direction of text.
    const bool harmless = length > 0 && symbol >= 0x20 && (symbol < 0x7F || symbol > 0x9F) &&
                          !(symbol >= 0x202A && symbol <= 0x202E) && !(symbol >= 0x2066 && symbol <= 0x2069);
    const std::size_t taken = std::max<std::size_t>(1, length);
    if (harmless) {
      out += text.substr(at, taken);
    } else {
      for (std::size_t i = at; i < at + taken; ++i) {
        const auto byte = static_cast<unsigned char>(text[i]);
        out += "\\x";
        out += kDigits[byte >> 4];
        out += kDigits[byte & 15U];
      }
    }
    at += taken;
  }
  return out;
}

std::string format_bytes(std::uint64_t bytes) {
  static constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return std::to_string(bytes) + " B";
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f %s", value, kUnits[unit]);
  return text.data();
}

std::string count_of(std::uint64_t count, std::string_view singular, std::string_view plural) {
  std::string text = std::to_string(count) + " ";
  if (count == 1) return text.append(singular);
  return plural.empty() ? text.append(singular) + "s" : text.append(plural);
}

std::string format_time(std::chrono::system_clock::time_point time) {
  const std::time_t seconds = std::chrono::system_clock::to_time_t(time);
  std::tm parts{};
  std::array<char, 64> text{};
  if (::gmtime_r(&seconds, &parts) == nullptr) return "?";
  std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text.data();
}

std::string pad_left(std::string_view text, std::size_t width) {
  const std::size_t own = width_of(text);
  return std::string(width > own ? width - own : 0, ' ') + std::string(text);
}

std::string pad_right(std::string_view text, std::size_t width) {
  const std::size_t own = width_of(text);
  return std::string(text) + std::string(width > own ? width - own : 0, ' ');
}

bool confirm(const std::string& question) {
  std::fputs((question + " [y/N] ").c_str(), stderr);
  std::fflush(stderr);
  std::string answer;
  std::getline(std::cin, answer);
  std::transform(answer.begin(), answer.end(), answer.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return answer == "y" || answer == "yes";
}

}  // namespace torchsnapshot::cli
