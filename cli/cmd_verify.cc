#include <algorithm>
#include <string>

#include "cli/commands.h"
#include "cli/json.h"

namespace torchsnapshot::cli {
namespace {

std::string to_json(const VerifyReport& report, const std::string& url, bool quick) {
  Json json;
  json.begin_object().member("url", url).member("quick", quick).member("intact", report.findings.empty());
  json.member("entries", report.entries).member("objects", report.objects).member("object_bytes", report.object_bytes);
  json.member("bytes_read", report.bytes_read).member("bytes_verified", report.bytes_verified);
  json.member("metadata_guarded", report.metadata_guarded).member("objects_without_checksums", report.unchecked);
  json.key("findings").begin_array();
  for (const Finding& finding : report.findings) {
    json.begin_object().member("kind", to_string(finding.kind)).member("entries", finding.entries);
    json.member("object", finding.object).key("range");
    if (finding.range) {
      json.begin_array().value(finding.range->begin).value(finding.range->end).end_array();
    } else {
      json.null();
    }
    json.member("expected", finding.expected).member("found", finding.found).member("message", finding.message);
    json.end_object();
  }
  return json.end_array().end_object().take();
}

void show(Output& out, const VerifyReport& report, bool quick) {
  constexpr std::size_t kShown = 100;
  for (std::size_t i = 0; i < std::min(kShown, report.findings.size()); ++i) {
    const Finding& finding = report.findings[i];
    out << out.red(pad_right(to_string(finding.kind), 14)) << "  " << printable(finding.message) << "\n";
  }
  if (report.findings.size() > kShown) {
    out << "… and " << std::to_string(report.findings.size() - kShown) << " more (--json lists all)\n";
  }
  out << count_of(report.entries, "entry", "entries") << ", " << count_of(report.objects, "object") << ", "
      << format_bytes(report.object_bytes);
  if (!quick) {
    out << "; read " << format_bytes(report.bytes_read) << ", " << format_bytes(report.bytes_verified)
        << " of it right by checksum";
  }
  out << "\n";
  if (!report.unchecked.empty()) {
    out << out.yellow("without checksums: " + count_of(report.unchecked.size(), "object") +
                      (quick ? "" : ", which were read but have nothing to be compared with"))
        << "\n";
  }
  if (!report.metadata_guarded && report.entries > 0) out << out.yellow("without checksum: the metadata") << "\n";
  if (!report.findings.empty()) {
    out << out.red(count_of(report.findings.size(), "finding")) << "\n";
  } else if (quick) {
    out << out.green("structure and sizes are right") << "; the data was not read\n";
  } else if (report.unchecked.empty() && report.metadata_guarded) {
    out << out.green("intact") << "\n";
  } else {
    out << "nothing wrong was found\n";
  }
}

}  // namespace

int run_verify(const Common& common, const VerifyCommandOptions& options) {
  const auto storage = open_storage(options.url, common.storage);
  ProgressBar bar("verify");
  VerifyOptions verify_options;
  verify_options.io = io_options(common, bar);
  verify_options.quick = options.quick;
  const VerifyReport report = verify(*storage, verify_options);
  bar.clear();
  Output out(common.color);
  if (common.json) {
    out << to_json(report, storage->url(), options.quick);
  } else {
    show(out, report, options.quick);
  }
  out.flush();
  return report.findings.empty() ? kFine : kFinding;
}

}  // namespace torchsnapshot::cli
