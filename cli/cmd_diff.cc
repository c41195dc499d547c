#include <array>
#include <cstdio>
#include <string>

#include "cli/commands.h"
#include "cli/json.h"

namespace torchsnapshot::cli {
namespace {

std::string to_json(const DiffReport& report, const std::string& a, const std::string& b) {
  Json json;
  json.begin_object().member("a", a).member("b", b).member("equal", report.differences.empty());
  json.member("entries", report.entries).member("bytes", report.bytes).key("differences").begin_array();
  for (const Difference& difference : report.differences) {
    json.begin_object().member("path", difference.path).member("kind", to_string(difference.kind));
    json.member("a", difference.a).member("b", difference.b);
    if (difference.elements > 0) {
      json.member("elements", difference.elements).member("differing", difference.differing);
      json.member("first_differing", difference.first_differing);
      json.member("max_absolute", difference.max_absolute).member("max_relative", difference.max_relative);
    }
    json.end_object();
  }
  return json.end_array().end_object().take();
}

std::string describe(const Output& out, const Difference& difference) {
  const std::string a = printable(difference.a);
  const std::string b = printable(difference.b);
  switch (difference.kind) {
    case DifferenceKind::kOnlyInA:
      return out.red("- ") + printable(difference.path) + "  " + out.dim(a);
    case DifferenceKind::kOnlyInB:
      return out.green("+ ") + printable(difference.path) + "  " + out.dim(b);
    default:
      break;
  }
  std::string text = out.yellow("~ ") + printable(difference.path) + "  ";
  if (difference.elements == 0) return text + (a == b ? a : a + " -> " + b);
  std::array<char, 128> distance{};
  std::snprintf(distance.data(), distance.size(), "largest difference %.3g, relative %.3g", difference.max_absolute,
                difference.max_relative);
  return text + a + ": " + std::to_string(difference.differing) + " of " + count_of(difference.elements, "element") +
         (difference.differing == 1 ? " differs" : " differ") + " (" + distance.data() + ", first at index " +
         std::to_string(difference.first_differing.value_or(0)) + ")";
}

}  // namespace

int run_diff(const Common& common, const DiffCommandOptions& options) {
  const Snapshot a(options.a, common.storage);
  const Snapshot b(options.b, common.storage);
  for (const Snapshot* snapshot : {&a, &b}) static_cast<void>(snapshot->metadata(common.verify));
  ProgressBar bar("diff");
  DiffOptions diff_options;
  diff_options.io = io_options(common, bar);
  diff_options.patterns = options.patterns;
  if (options.rtol || options.atol) diff_options.tolerance = {options.rtol.value_or(0), options.atol.value_or(0)};
  const DiffReport report = diff(a, b, diff_options);
  bar.clear();
  Output out(common.color);
  if (common.json) {
    out << to_json(report, a.storage()->url(), b.storage()->url());
  } else {
    for (const Difference& difference : report.differences) out << describe(out, difference) << "\n";
    const std::string compared =
        count_of(report.entries, "entry", "entries") + " compared, " + format_bytes(report.bytes);
    out << (report.differences.empty() ? out.green("equal") + ": "
                                       : count_of(report.differences.size(), "difference") + "; ")
        << compared << "\n";
  }
  out.flush();
  return report.differences.empty() ? kFine : kFinding;
}

}  // namespace torchsnapshot::cli
