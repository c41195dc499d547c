// Text for people: on a terminal or not.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <string>
#include <string_view>

namespace torchsnapshot::cli {

enum class ColorMode : std::uint8_t { kAuto, kAlways, kNever };

/// Standard output, written in one go at the end or when there is much. A failure to write is an Error(kIo).
class Output {
 public:
  explicit Output(ColorMode mode);
  ~Output() = default;
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  Output& operator<<(std::string_view text);
  void write(const void* data, std::size_t size);
  /// The text in a style, or as it is where there are no colours.
  [[nodiscard]] std::string bold(std::string_view text) const { return styled(text, "1"); }
  [[nodiscard]] std::string dim(std::string_view text) const { return styled(text, "2"); }
  [[nodiscard]] std::string red(std::string_view text) const { return styled(text, "31"); }
  [[nodiscard]] std::string green(std::string_view text) const { return styled(text, "32"); }
  [[nodiscard]] std::string yellow(std::string_view text) const { return styled(text, "33"); }
  /// Writes what is left. Call it before the program ends.
  void flush();

 private:
  [[nodiscard]] std::string styled(std::string_view text, const char* code) const;

  bool colored_;
  std::string buffer_;
};

/// One line on standard error that says how far the work has come; nothing unless that is a terminal. Thread-safe.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void show(std::uint64_t done, std::uint64_t total);
  /// Takes the line away.
  void clear();

 private:
  const std::string label_;
  const bool enabled_;
  const std::chrono::steady_clock::time_point start_;
  std::mutex mutex_;
  bool shown_ = false;
};

/// Text from a snapshot, safe for a terminal: control characters and bytes that are no UTF-8 as \xHH.
std::string printable(std::string_view text);
/// "1.5 GiB"
std::string format_bytes(std::uint64_t bytes);
/// "12 objects", "1 object"
std::string count_of(std::uint64_t count, std::string_view singular, std::string_view plural = {});
/// "2026-11-24 11:06:18 UTC"
std::string format_time(std::chrono::system_clock::time_point time);
/// Pads on the left, or on the right; counts characters, not bytes.
std::string pad_left(std::string_view text, std::size_t width);
std::string pad_right(std::string_view text, std::size_t width);
/// Asks on the terminal; false unless the answer is yes.
bool confirm(const std::string& question);

}  // namespace torchsnapshot::cli
