#include <algorithm>
#include <string>

#include "cli/commands.h"
#include "cli/json.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot::cli {
namespace {

constexpr std::size_t kSizeWidth = 10;

ListOptions list_options(const LsOptions& options) {
  ListOptions list;
  list.patterns = options.patterns;
  list.rank = options.rank;
  list.max_level = options.depth;
  if (options.sort == "name") list.order = ListOptions::Order::kName;
  if (options.sort == "size") list.order = ListOptions::Order::kSize;
  for (const std::string& name : options.dtypes) {
    auto dtype = dtype_from_name(name);
    if (!dtype) dtype = dtype_from_name("torch." + name);
    if (!dtype)
      throw Error(ErrorCode::kInvalidArgument, "'" + name + "' is no dtype; they are called as in torch (float32)");
    list.dtypes.push_back(*dtype);
  }
  return list;
}

std::string shape_text(const Dims& shape) {
  std::string text = "[";
  for (std::size_t d = 0; d < shape.size(); ++d) text += (d == 0 ? "" : ", ") + std::to_string(shape[d]);
  return text + "]";
}

std::string description(const EntryInfo& entry) {
  if (entry.dtype || entry.type.ends_with("Tensor")) {
    std::string text =
        (entry.dtype ? std::string(dtype_name(*entry.dtype)) : "no shards here,") + " " + shape_text(entry.shape);
    if (entry.type != "Tensor") text += " " + entry.type + ", " + count_of(entry.pieces, "piece");
    if (!entry.serializer.empty() && entry.serializer != kBufferProtocol) text += " " + entry.serializer;
    return entry.replicated ? text + ", replicated" : text;
  }
  std::string text = entry.type;
  if (entry.container) return text + ", " + count_of(entry.leaves, "entry", "entries");
  text += " " + printable(entry.value);
  return entry.replicated ? text + ", replicated" : text;
}

void write_json(Json& json, const EntryInfo& entry) {
  json.begin_object().member("path", entry.path).member("type", entry.type).member("level", entry.level);
  json.member("bytes", entry.bytes);
  if (entry.container) {
    json.member("leaves", entry.leaves).end_object();
    return;
  }
  json.member("replicated", entry.replicated);
  if (entry.dtype) json.member("dtype", dtype_name(*entry.dtype));
  if (entry.type.ends_with("Tensor")) json.member("shape", entry.shape).member("pieces", entry.pieces);
  if (!entry.serializer.empty()) json.member("serializer", entry.serializer);
  if (!entry.value.empty()) json.member(entry.type == "object" ? "object_type" : "value", entry.value);
  json.end_object();
}

std::string_view name_of(std::string_view path) {
  return path.substr(path.rfind('/') + 1);  // npos + 1 is 0
}

}  // namespace

int run_ls(const Common& common, const LsOptions& options) {
  const ListOptions list = list_options(options);
  const Snapshot snapshot(options.url, common.storage);
  const auto metadata = snapshot.metadata(common.verify);
  std::vector<EntryInfo> entries =
      list_entries(*metadata, options.names ? LocationSizes{} : object_sizes(*metadata, *snapshot.storage()), list);
  if (options.flat || options.names) {
    std::erase_if(entries, [](const EntryInfo& entry) { return entry.container; });
    if (options.sort == "size") {
      std::stable_sort(entries.begin(), entries.end(),
                       [](const EntryInfo& a, const EntryInfo& b) { return a.bytes > b.bytes; });
    }
  }
  Output out(common.color);
  if (common.json) {
    Json json;
    json.begin_object().member("url", snapshot.storage()->url()).key("entries").begin_array();
    for (const EntryInfo& entry : entries) write_json(json, entry);
    out << json.end_array().end_object().take();
  } else {
    for (const EntryInfo& entry : entries) {
      if (options.names) {
        out << printable(entry.path) << "\n";
        continue;
      }
      const bool has_bytes = entry.container || entry.dtype || !entry.serializer.empty();  // primitives have none
      const std::string size = has_bytes ? format_bytes(entry.bytes) : "";
      const std::string name = printable(options.flat ? std::string_view(entry.path) : name_of(entry.path));
      out << pad_left(size, kSizeWidth) << "  ";
      if (!options.flat) out << std::string(2 * entry.level, ' ');
      out << (entry.container ? out.bold(name + "/") : name) << "  " << out.dim(description(entry)) << "\n";
    }
  }
  out.flush();
  return kFine;
}

}  // namespace torchsnapshot::cli
