#include <unistd.h>

#include <string>

#include "cli/commands.h"
#include "cli/json.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot::cli {

int run_rm(const Common& common, const RmOptions& options) {
  const auto storage = open_storage(options.url, common.storage);
  const std::string url = printable(storage->url());
  RemoveReport report = remove_snapshot(*storage, options.force, true);
  const std::string what = count_of(report.objects, "object") + ", " + format_bytes(report.bytes);
  bool removed = false;
  if (!options.dry_run) {
    if (!options.yes) {
      if (::isatty(STDIN_FILENO) != 1) {
        throw Error(ErrorCode::kInvalidArgument,
                    "rm asks before it removes " + url + ", and there is no terminal to ask: say -y");
      }
      removed = confirm("Remove the snapshot at " + url + " (" + what + ")?");
    } else {
      removed = true;
    }
    if (removed) report = remove_snapshot(*storage, options.force, false);
  }
  Output out(common.color);
  if (common.json) {
    Json json;
    json.begin_object().member("url", storage->url()).member("removed", removed).member("dry_run", options.dry_run);
    json.member("objects", report.objects).member("bytes", report.bytes).member("remaining", report.remaining);
    out << json.end_object().take();
  } else {
    out << (removed ? "removed " : options.dry_run ? "would remove " : "not removed: ") << what << "\n";
    if (report.remaining > 0) {
      out << count_of(report.remaining, "object") << " of other takes "
          << (report.remaining == 1 ? "remains" : "remain") << "; torchsnapshot prune removes those of dead ones\n";
    }
  }
  out.flush();
  return removed || options.dry_run ? kFine : kFinding;
}

}  // namespace torchsnapshot::cli
