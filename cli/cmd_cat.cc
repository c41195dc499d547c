#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <span>
#include <string>
#include <utility>

#include "cli/commands.h"
#include "cli/json.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot::cli {
namespace {

template <typename Real>
std::string shortest(Real number) {
  std::array<char, 32> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), number).ptr;
  return {text.data(), static_cast<std::size_t>(end - text.data())};
}

/// With as few digits as tell the number apart from its neighbours in the dtype (or in float32, for narrower ones).
std::string number_text(const Number& number, DType dtype) {
  const bool is_double = dtype == DType::kFloat64 || dtype == DType::kComplex128;
  const auto number_text = [is_double](double real) {
    return is_double ? shortest(real) : shortest(static_cast<float>(real));
  };
  if (const auto* complex = std::get_if<std::complex<double>>(&number)) {
    return number_text(complex->real()) + (std::signbit(complex->imag()) ? "" : "+") + number_text(complex->imag()) +
           "j";
  }
  if (const auto* real = std::get_if<double>(&number)) return number_text(*real);
  if (const auto* whole = std::get_if<std::int64_t>(&number)) return std::to_string(*whole);
  return std::to_string(std::get<std::uint64_t>(number));
}

/// A file that appears under its name only when it is complete.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path)
      : path_(path), partial_(path + ".part"), file_(std::fopen(partial_.c_str(), "wb")) {
    if (file_ == nullptr) throw errno_error(errno, "open " + partial_);
  }
  ~OutputFile() {
    if (file_ == nullptr) return;
    std::fclose(file_);
    std::remove(partial_.c_str());
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::span<const std::byte> bytes) {
    if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size())
      throw errno_error(errno, "write " + partial_);
  }
  void finish() {
    const int failed = std::fclose(std::exchange(file_, nullptr));
    if (failed != 0 || std::rename(partial_.c_str(), path_.c_str()) != 0) {
      const int error = errno;
      std::remove(partial_.c_str());
      throw errno_error(error, "write " + path_);
    }
  }

 private:
  std::string path_;
  std::string partial_;
  std::FILE* file_;
};

/// The value of a primitive, byte for byte.
std::string raw_text(const Value& value, const std::string& readable) {
  if (const auto* text = value.get_if<std::string>()) return *text;
  if (const auto* bytes = value.get_if<Bytes>()) return bytes->data;
  return readable;
}

void refuse_terminal(const char* what) {
  if (::isatty(STDOUT_FILENO) != 1) return;
  throw Error(ErrorCode::kInvalidArgument,
              std::string(what) + " would write binary data to the terminal: send it to a file or another program");
}

int write_npy_file(const Snapshot& snapshot, const std::string& path, const CatOptions& options, const IoOptions& io,
                   Output& out) {
  std::string dtype;
  if (options.npy == "-") {
    refuse_terminal("--npy -");
    dtype = write_npy(
        snapshot, path, [&out](std::span<const std::byte> bytes) { out.write(bytes.data(), bytes.size()); }, io);
    out.flush();
  } else {
    OutputFile file(options.npy);
    dtype = write_npy(
        snapshot, path, [&file](std::span<const std::byte> bytes) { file.write(bytes); }, io);
    file.finish();
  }
  return kFine;
}

void show_tensor(Output& out, const TensorSummary& summary) {
  const auto line = [&out](const std::string& name, const std::string& value) {
    out << pad_right(name, 12) << value << "\n";
  };
  std::string shape = "[";
  for (std::size_t d = 0; d < summary.shape.size(); ++d)
    shape += (d == 0 ? "" : ", ") + std::to_string(summary.shape[d]);
  line("dtype", std::string(dtype_name(summary.dtype)));
  line("shape", shape + "]");
  line("elements", std::to_string(summary.elements) + ", " + format_bytes(summary.bytes));
  if (summary.minimum) line("min", number_text(*summary.minimum, summary.dtype));
  if (summary.maximum) line("max", number_text(*summary.maximum, summary.dtype));
  if (summary.mean) line("mean", number_text(*summary.mean, DType::kFloat64));
  if (!summary.first.empty()) {
    line("NaN", summary.nans == 0 ? "0" : out.red(std::to_string(summary.nans)));
    line("infinite", summary.infinities == 0 ? "0" : out.red(std::to_string(summary.infinities)));
    line("zero", std::to_string(summary.zeros));
    std::string first;
    for (const Number& number : summary.first)
      first += (first.empty() ? "" : ", ") + number_text(number, summary.dtype);
    line("first", first + (summary.first.size() < summary.elements ? ", …" : ""));
  }
}

void write_tensor(Json& json, const TensorSummary& summary) {
  json.member("dtype", dtype_name(summary.dtype)).member("shape", summary.shape).member("elements", summary.elements);
  json.member("bytes", summary.bytes).member("min", summary.minimum).member("max", summary.maximum);
  json.member("mean", summary.mean).member("nan", summary.nans).member("infinite", summary.infinities);
  json.member("zero", summary.zeros).member("first", summary.first);
}

}  // namespace

int run_cat(const Common& common, const CatOptions& options) {
  const Snapshot snapshot(options.url, common.storage);
  const auto metadata = snapshot.metadata(common.verify);
  const std::string path = resolve_entry(*metadata, options.path);
  const Entry& entry = *metadata->manifest.find(path);
  ProgressBar bar("cat");
  const IoOptions io = io_options(common, bar);
  Output out(common.color);

  if (!options.npy.empty()) return write_npy_file(snapshot, path, options, io, out);
  const auto* primitive = std::get_if<PrimitiveEntry>(&entry);
  if (options.raw) {
    if (is_container(entry))
      throw Error(ErrorCode::kInvalidArgument, "'" + path + "' is a container: it has no bytes of its own");
    if (primitive != nullptr) {
      out << raw_text(snapshot.read_object(path), primitive->readable.value_or(primitive->serialized_value));
    } else {
      refuse_terminal("--raw");
      read_serialized(
          snapshot, path, [&out](std::span<const std::byte> bytes) { out.write(bytes.data(), bytes.size()); }, io);
    }
    out.flush();
    return kFine;
  }

  const std::vector<EntryInfo> infos = list_entries(*metadata, object_sizes(*metadata, *snapshot.storage()));
  const auto found =
      std::find_if(infos.begin(), infos.end(), [&path](const EntryInfo& info) { return info.path == path; });
  if (found == infos.end()) throw Error(ErrorCode::kInternal, "entry '" + path + "' is not in the list");
  const EntryInfo& info = *found;
  const bool is_encoded = !info.serializer.empty() && info.serializer != kBufferProtocol;

  Json json;
  json.begin_object().member("path", path).member("type", info.type);
  if (info.container) {
    if (const auto* dict = std::get_if<DictEntry>(&entry)) {
      json.key("keys").begin_array();
      for (const Key& key : dict->keys) {
        json.value(key.text);
        if (!common.json) out << printable(key.text) << "\n";
      }
      json.end_array();
    } else if (!common.json) {
      out << "list, " << count_of(info.leaves, "entry", "entries") << "\n";
    }
    json.member("leaves", info.leaves).member("bytes", info.bytes);
  } else if (primitive != nullptr) {
    json.member("value", info.value).member("serialized_value", primitive->serialized_value);
    if (!common.json) out << printable(raw_text(snapshot.read_object(path), info.value)) << "\n";
  } else if (info.type == "object") {
    json.member("object_type", info.value).member("serializer", info.serializer).member("bytes", info.bytes);
    if (!common.json) {
      out << pad_right("object", 12) << printable(info.value) << "\n"
          << pad_right("size", 12) << format_bytes(info.bytes) << " as " << printable(info.serializer)
          << " (--raw has the bytes)\n";
    }
  } else if (!is_encoded) {
    const TensorSummary summary = summarize_tensor(snapshot, path, options.first, io);
    bar.clear();
    write_tensor(json, summary);
    if (!common.json) show_tensor(out, summary);
  } else {
    json.member("dtype", std::string(info.dtype ? dtype_name(*info.dtype) : "")).member("shape", info.shape);
    json.member("serializer", info.serializer).member("bytes", info.bytes);
    if (!common.json) {
      out << pad_right("dtype", 12) << (info.dtype ? dtype_name(*info.dtype) : "?") << "\n"
          << pad_right("size", 12) << format_bytes(info.bytes) << " as " << printable(info.serializer)
          << ", whose elements only torch can read (--raw has the bytes)\n";
    }
  }
  json.end_object();
  if (common.json) out << json.take();
  out.flush();
  return kFine;
}

}  // namespace torchsnapshot::cli
