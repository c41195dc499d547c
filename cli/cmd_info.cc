#include <string>

#include "cli/commands.h"
#include "cli/json.h"

namespace torchsnapshot::cli {
namespace {

template <typename Key>
void write_json(Json& json, const std::string& name, const std::map<Key, Totals>& totals) {
  json.key(name).begin_object();
  for (const auto& [key, total] : totals) {
    if constexpr (std::is_integral_v<Key>) {
      json.key(std::to_string(key));
    } else {
      json.key(key);
    }
    json.begin_object().member("entries", total.entries).member("bytes", total.bytes).end_object();
  }
  json.end_object();
}

std::string to_json(const SnapshotSummary& summary, const std::string& url) {
  Json json;
  json.begin_object().member("url", url).member("version", summary.version).member("writer", summary.writer);
  json.member("world_size", summary.world_size).member("take_ids", summary.take_ids);
  json.key("committed");
  if (summary.committed) {
    json.value(format_time(*summary.committed));
  } else {
    json.null();
  }
  json.member("metadata_bytes", summary.metadata_bytes).member("metadata_guarded", summary.metadata_guarded);
  json.member("entries", summary.leaves.entries).member("entry_bytes", summary.leaves.bytes);
  json.member("objects", summary.objects).member("object_bytes", summary.object_bytes);
  json.member("objects_missing", summary.objects_missing);
  json.member("objects_with_checksums", summary.objects_with_checksums);
  json.member("bytes_with_checksums", summary.bytes_with_checksums);
  json.member("problems", summary.problems);
  write_json(json, "by_key", summary.by_key);
  write_json(json, "by_rank", summary.by_rank);
  write_json(json, "by_type", summary.by_type);
  write_json(json, "by_dtype", summary.by_dtype);
  return json.end_object().take();
}

template <typename Key>
void write_table(Output& out, const std::string& title, const std::map<Key, Totals>& totals) {
  if (totals.empty()) return;
  constexpr std::size_t kNameWidth = 28;
  constexpr std::size_t kNumberWidth = 12;
  out << "\n"
      << out.bold(pad_right(title, kNameWidth) + pad_left("entries", kNumberWidth) + pad_left("size", kNumberWidth))
      << "\n";
  for (const auto& [key, total] : totals) {
    std::string name;
    if constexpr (std::is_integral_v<Key>) {
      name = std::to_string(key);
    } else {
      name = printable(key);
    }
    out << pad_right(name, kNameWidth) << pad_left(std::to_string(total.entries), kNumberWidth)
        << pad_left(format_bytes(total.bytes), kNumberWidth) << "\n";
  }
}

std::string checksum_text(const Output& out, const SnapshotSummary& summary) {
  if (summary.objects_with_checksums == 0) return out.yellow("none: damage of the data can't be noticed");
  const std::string text = std::to_string(summary.objects_with_checksums) + " of " +
                           count_of(summary.objects, "object") + ", " + format_bytes(summary.bytes_with_checksums) +
                           " of " + format_bytes(summary.object_bytes);
  return summary.objects_with_checksums == summary.objects ? out.green(text) : out.yellow(text);
}

}  // namespace

int run_info(const Common& common, const InfoOptions& options) {
  const Snapshot snapshot(options.url, common.storage);
  static_cast<void>(snapshot.metadata(common.verify));
  const SnapshotSummary summary = summarize(snapshot);
  Output out(common.color);
  if (common.json) {
    out << to_json(summary, snapshot.storage()->url());
    out.flush();
    return kFine;
  }
  const auto line = [&out](const std::string& name, const std::string& value) {
    out << pad_right(name, 14) << value << "\n";
  };
  line("snapshot", printable(snapshot.storage()->url()));
  line("taken by", printable(summary.writer));
  if (summary.committed) line("committed", format_time(*summary.committed));
  for (const std::string& id : summary.take_ids) line("take", id);
  line("ranks", std::to_string(summary.world_size));
  line("entries", std::to_string(summary.leaves.entries) + ", " + format_bytes(summary.leaves.bytes));
  line("objects",
       std::to_string(summary.objects) + ", " + format_bytes(summary.object_bytes) +
           (summary.objects_missing == 0 ? "" : ", " + out.red(std::to_string(summary.objects_missing) + " missing")));
  line("metadata", format_bytes(summary.metadata_bytes) +
                       (summary.metadata_guarded ? ", with a checksum" : ", without a checksum"));
  line("checksums", checksum_text(out, summary));
  for (const std::string& problem : summary.problems) line("problem", out.red(printable(problem)));
  write_table(out, "key", summary.by_key);
  write_table(out, "rank", summary.by_rank);
  write_table(out, "type", summary.by_type);
  write_table(out, "dtype", summary.by_dtype);
  out.flush();
  return kFine;
}

}  // namespace torchsnapshot::cli
