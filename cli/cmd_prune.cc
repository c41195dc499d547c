#include <array>
#include <charconv>
#include <string>
#include <utility>

#include "cli/commands.h"
#include "cli/json.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot::cli {

std::chrono::seconds parse_duration(const std::string& text) {
  static constexpr std::array<std::pair<std::string_view, std::int64_t>, 6> kUnits = {
      {{"s", 1}, {"m", 60}, {"min", 60}, {"h", 3600}, {"d", 86400}, {"w", 604800}}};
  constexpr std::int64_t kMostSeconds = 1'000'000'000;
  std::int64_t count = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), count);
  const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  if (status == std::errc() && count >= 0 && count <= kMostSeconds) {
    if (unit.empty() && count == 0) return std::chrono::seconds(0);
    for (const auto& [name, seconds] : kUnits) {
      if (unit == name && count <= kMostSeconds / seconds) return std::chrono::seconds(count * seconds);
    }
  }
  throw Error(ErrorCode::kInvalidArgument, "'" + text + "' is no duration: write 90s, 30m, 12h, 1d, 2w or 0");
}

int run_prune(const Common& common, const PruneCommandOptions& options) {
  PruneOptions prune_options;
  prune_options.older_than = parse_duration(options.older_than);
  prune_options.dry_run = options.dry_run;
  const auto storage = open_storage(options.url, common.storage);
  const PruneReport report = prune(*storage, prune_options);
  Output out(common.color);
  if (common.json) {
    Json json;
    json.begin_object().member("url", storage->url()).member("dry_run", options.dry_run);
    json.member("removed_objects", report.removed_objects).member("removed_bytes", report.removed_bytes);
    json.key("left_overs").begin_array();
    for (const LeftOver& left_over : report.left_overs) {
      json.begin_object().member("take_id", left_over.take_id).member("dead", left_over.life == TakeLife::kDead);
      json.member("reason", left_over.reason).member("bytes", left_over.bytes);
      json.member("objects", left_over.locations).end_object();
    }
    out << json.end_array().end_object().take();
  } else {
    for (const LeftOver& left_over : report.left_overs) {
      const bool dead = left_over.life == TakeLife::kDead;
      const std::string name = left_over.take_id.empty() ? left_over.locations.front() : "take " + left_over.take_id;
      out << (dead ? out.yellow(options.dry_run ? "would remove " : "removed ") : out.green("kept ")) << printable(name)
          << "  " << count_of(left_over.locations.size(), "object") << ", " << format_bytes(left_over.bytes) << "  "
          << out.dim(left_over.reason) << "\n";
    }
    if (report.left_overs.empty()) {
      out << "no left-overs\n";
    } else {
      out << (options.dry_run ? "would remove " : "removed ") << count_of(report.removed_objects, "object") << ", "
          << format_bytes(report.removed_bytes) << "\n";
    }
  }
  out.flush();
  return kFine;
}

}  // namespace torchsnapshot::cli
