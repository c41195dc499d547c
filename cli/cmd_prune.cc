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

namespace {

/// "3 objects, 2 unfinished uploads, 1.5 GiB"
std::string what_of(std::size_t objects, std::size_t unfinished, std::uint64_t bytes) {
  std::string text = objects > 0 || unfinished == 0 ? count_of(objects, "object") + ", " : "";
  if (unfinished > 0) text += count_of(unfinished, "unfinished upload") + ", ";
  return text + format_bytes(bytes);
}

}  // namespace

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
    json.member("removed_objects", report.removed_objects).member("removed_unfinished", report.removed_unfinished);
    json.member("removed_bytes", report.removed_bytes).member("notices", report.notices);
    json.key("left_overs").begin_array();
    for (const LeftOver& left_over : report.left_overs) {
      json.begin_object().member("take_id", left_over.take_id).member("dead", left_over.life == TakeLife::kDead);
      json.member("reason", left_over.reason).member("bytes", left_over.bytes);
      std::vector<std::string> unfinished;
      for (const UnfinishedObject& object : left_over.unfinished) unfinished.push_back(object.location);
      json.member("objects", left_over.locations).member("unfinished", unfinished).end_object();
    }
    out << json.end_array().end_object().take();
  } else {
    for (const LeftOver& left_over : report.left_overs) {
      const bool dead = left_over.life == TakeLife::kDead;
      const std::string name = left_over.take_id.empty() ? left_over.locations.front() : "take " + left_over.take_id;
      out << (dead ? out.yellow(options.dry_run ? "would remove " : "removed ") : out.green("kept ")) << printable(name)
          << "  " << what_of(left_over.locations.size(), left_over.unfinished.size(), left_over.bytes) << "  "
          << out.dim(left_over.reason) << "\n";
    }
    if (report.left_overs.empty()) {
      out << "no left-overs\n";
    } else {
      out << (options.dry_run ? "would remove " : "removed ")
          << what_of(report.removed_objects, report.removed_unfinished, report.removed_bytes) << "\n";
    }
    for (const std::string& notice : report.notices) out << out.yellow("note: ") << printable(notice) << "\n";
  }
  out.flush();
  return kFine;
}

}  // namespace torchsnapshot::cli
