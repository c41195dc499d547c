// The form is a stream of records, one an entry, in the order of the manifest:
//   path without the rank: how many bytes it has alike with the one before, and the rest
//   kind (Kind), then the fields of the entry (Encoder)
// A piece names its offsets by number: places is a list of distinct offsets, in the order in which the form first names
// them. An offset that is a multiple of the size is stored as how often, so that all tensors that are cut alike share
// one, and `places` is short. A layout (the mesh of a DTensor) is written once, and then named by number.

#include "manifest/compact_part.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <map>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "manifest/compact_stream.h"
#include "manifest/rank_view.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

enum class Kind : std::uint8_t { kTensor, kChunked, kSharded, kObject, kPrimitive, kList, kDict, kOrderedDict };
enum class Place : std::uint8_t { kOwn, kOthers, kText };  ///< of a location

constexpr std::array<std::string_view, 4> kSerializers = {kBufferProtocol, kTorchSave, kPerTensorQTensor,
                                                          kPerChannelQTensor};
constexpr std::uint64_t kDTypes = static_cast<std::uint64_t>(DType::kQInt32) + 1;
constexpr std::uint64_t kPrimitives = static_cast<std::uint64_t>(PrimitiveType::kFloat) + 1;
constexpr std::uint64_t kReplicatedBit = 1;
constexpr std::uint64_t kRangeBit = 2;

/// "data/TAKE/RANK-N" taken apart, if it is printed so.
std::optional<std::pair<std::uint64_t, std::uint64_t>> numbers_of(std::string_view location, std::string_view folder) {
  if (!location.starts_with(folder)) return std::nullopt;
  const std::string_view name = location.substr(folder.size());
  const auto number = [](std::string_view digits) -> std::optional<std::uint64_t> {
    std::uint64_t value = 0;
    const char* const end = digits.data() + digits.size();
    if (digits.empty() || (digits.size() > 1 && digits.front() == '0')) return std::nullopt;
    const auto [stop, status] = std::from_chars(digits.data(), end, value);
    return status == std::errc() && stop == end ? std::optional(value) : std::nullopt;
  };
  const std::size_t dash = name.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const auto rank = number(name.substr(0, dash));
  const auto object = number(name.substr(dash + 1));
  if (!rank || !object) return std::nullopt;
  return std::pair(*rank, *object);
}

std::string folder_of(std::string_view take_id) {
  return "data/" + std::string(take_id) + "/";
}

class Encoder {
 public:
  /// `rank`: -1 for none.
  Encoder(std::int64_t rank, std::string_view take_id)
      : rank_(static_cast<std::uint64_t>(rank)), folder_(folder_of(take_id)) {}

  void add(std::string_view path, const Entry& entry) {
    const auto alike = static_cast<std::size_t>(
        std::mismatch(path.begin(), path.end(), last_path_.begin(), last_path_.end()).first - path.begin());
    form_.number(alike);
    form_.text(path.substr(alike));
    last_path_ = path;
    std::visit([this](const auto& e) { fields(e); }, entry);
  }

  CompactPart take() { return {form_.take(), places_.take(), values_.take()}; }

 private:
  void kind(Kind kind) { form_.number(static_cast<std::uint64_t>(kind)); }

  void dims(const Dims& dims) {
    form_.number(dims.size());
    for (const std::int64_t dim : dims) form_.integer(dim);
  }

  void location(std::string_view location) {
    const auto numbers = numbers_of(location, folder_);
    if (!numbers) {
      form_.number(static_cast<std::uint64_t>(Place::kText));
      form_.text(location);
      return;
    }
    const bool is_own = numbers->first == rank_;
    form_.number(static_cast<std::uint64_t>(is_own ? Place::kOwn : Place::kOthers));
    if (!is_own) form_.number(numbers->first);
    form_.number(numbers->second);
  }

  void serializer(std::string_view name) {
    const auto found = std::find(kSerializers.begin(), kSerializers.end(), name);
    form_.number(static_cast<std::uint64_t>(found - kSerializers.begin()));
    if (found == kSerializers.end()) form_.text(name);
  }

  void tensor(const TensorEntry& e) {
    form_.number((e.replicated ? kReplicatedBit : 0) | (e.byte_range ? kRangeBit : 0));
    location(e.location);
    serializer(e.serializer);
    form_.number(static_cast<std::uint64_t>(e.dtype));
    dims(e.shape);
    if (!e.byte_range) return;
    form_.number(e.byte_range->begin);
    form_.number(e.byte_range->end - e.byte_range->begin);
  }

  /// A piece's box has the shape of its tensor.
  void piece(const ShardEntry& piece) {
    std::vector<std::int64_t> steps;
    for (std::size_t d = 0; d < piece.box.offsets.size(); ++d) {
      const std::int64_t offset = piece.box.offsets[d];
      const std::int64_t size = piece.box.sizes[d];
      const bool is_multiple = size > 0 && offset % size == 0;
      steps.push_back(is_multiple ? offset / size : offset);
      steps.push_back(is_multiple ? 1 : 0);
    }
    const auto [at, is_new] = known_places_.try_emplace(steps, known_places_.size());
    form_.number(at->second);
    if (is_new) {
      places_.number(piece.box.offsets.size());
      for (std::size_t i = 0; i < steps.size(); i += 2) {
        places_.number(static_cast<std::uint64_t>(steps[i]) << 1U | static_cast<std::uint64_t>(steps[i + 1]));
      }
    }
    tensor(piece.tensor);
  }

  void pieces(const std::vector<ShardEntry>& pieces) {
    form_.number(pieces.size());
    for (const ShardEntry& one : pieces) piece(one);
  }

  void layout(const MeshLayout& layout) {
    const auto found =
        std::find_if(layouts_.begin(), layouts_.end(), [&layout](const MeshLayout* known) { return *known == layout; });
    form_.number(static_cast<std::uint64_t>(found - layouts_.begin()));
    if (found != layouts_.end()) return;
    layouts_.push_back(&layout);
    dims(layout.mesh_shape);
    dims(layout.mesh);
    form_.number(layout.dim_map.size());
    for (const Dims& map : layout.dim_map) dims(map);
  }

  void fields(const TensorEntry& e) {
    kind(Kind::kTensor);
    tensor(e);
  }
  void fields(const ChunkedTensorEntry& e) {
    kind(Kind::kChunked);
    form_.number(e.replicated ? kReplicatedBit : 0);
    form_.number(static_cast<std::uint64_t>(e.dtype));
    dims(e.shape);
    pieces(e.chunks);
  }
  void fields(const ShardedTensorEntry& e) {
    kind(Kind::kSharded);
    layout(e.layout);
    pieces(e.shards);
  }
  void fields(const ObjectEntry& e) {
    kind(Kind::kObject);
    form_.number(e.replicated ? kReplicatedBit : 0);
    location(e.location);
    serializer(e.serializer);
    form_.text(e.obj_type);
  }
  void fields(const PrimitiveEntry& e) {
    kind(Kind::kPrimitive);
    form_.number(e.replicated ? kReplicatedBit : 0);
    form_.number(static_cast<std::uint64_t>(e.type));
    values_.text(e.serialized_value);
    values_.number(e.readable ? 1 : 0);
    if (e.readable) values_.text(*e.readable);
  }
  void fields(const ListEntry&) { kind(Kind::kList); }
  void fields(const DictEntry& e) {
    kind(e.ordered ? Kind::kOrderedDict : Kind::kDict);
    form_.number(e.keys.size());
    for (const Key& key : e.keys) {
      form_.number(key.is_int ? 1 : 0);
      form_.text(key.text);
    }
  }

  const std::uint64_t rank_;
  const std::string folder_;
  CompactWriter form_;
  CompactWriter places_;
  CompactWriter values_;
  std::string_view last_path_;
  std::map<std::vector<std::int64_t>, std::uint64_t> known_places_;
  std::vector<const MeshLayout*> layouts_;
};

class Decoder {
 public:
  /// `rank`: empty for none.
  Decoder(const CompactPart& part, std::string rank, std::string_view take_id)
      : form_(part.form),
        places_(part.places),
        values_(part.values),
        rank_(std::move(rank)),
        prefix_(rank_.empty() ? "" : rank_ + "/"),
        folder_(folder_of(take_id)) {}

  void run(Manifest& out) {
    while (!form_.at_end()) {
      const std::uint64_t alike = form_.number();
      if (alike > path_.size()) CompactReader::fail("a path begins like a longer one");
      path_.resize(static_cast<std::size_t>(alike));
      path_ += form_.text();
      Entry* const entry = out.try_emplace(prefix_ + path_);
      if (entry == nullptr) CompactReader::fail("a path is there twice");
      read(*entry);
    }
    if (!places_.at_end() || !values_.at_end()) CompactReader::fail("something is left over");
  }

 private:
  std::uint64_t below(std::uint64_t limit) {
    const std::uint64_t value = form_.number();
    if (value >= limit) CompactReader::fail("a number is out of its range");
    return value;
  }

  bool replicated() { return below(2) != 0; }
  DType dtype() { return static_cast<DType>(below(kDTypes)); }

  Dims dims() {
    Dims dims(form_.count());
    for (std::int64_t& dim : dims) dim = form_.integer();
    return dims;
  }

  std::string location() {
    const auto place = static_cast<Place>(below(3));
    if (place == Place::kText) return std::string(form_.text());
    const std::string rank = place == Place::kOwn ? rank_ : std::to_string(form_.number());
    return folder_ + rank + "-" + std::to_string(form_.number());
  }

  std::string serializer() {
    const std::uint64_t number = below(kSerializers.size() + 1);
    return std::string(number == kSerializers.size() ? form_.text() : kSerializers[number]);
  }

  TensorEntry tensor() {
    TensorEntry e;
    const std::uint64_t flags = below(4);
    e.replicated = (flags & kReplicatedBit) != 0;
    e.location = location();
    e.serializer = serializer();
    e.dtype = dtype();
    e.shape = dims();
    if ((flags & kRangeBit) != 0) {
      ByteRange range;
      range.begin = form_.number();
      range.end = range.begin + form_.number();
      if (range.end < range.begin) CompactReader::fail("a byte range is too large");
      e.byte_range = range;
    }
    return e;
  }

  ShardEntry piece() {
    const std::uint64_t place = below(known_places_.size() + 1);
    if (place == known_places_.size()) {
      std::vector<std::uint64_t>& steps = known_places_.emplace_back(places_.count());
      for (std::uint64_t& step : steps) step = places_.number();
    }
    ShardEntry piece;
    piece.tensor = tensor();
    piece.box.sizes = piece.tensor.shape;
    const std::vector<std::uint64_t>& steps = known_places_[static_cast<std::size_t>(place)];
    if (steps.size() != piece.box.sizes.size()) CompactReader::fail("a piece has other dimensions than its place");
    for (std::size_t d = 0; d < steps.size(); ++d) {
      auto offset = static_cast<std::int64_t>(steps[d] >> 1U);
      if ((steps[d] & 1U) != 0 && __builtin_mul_overflow(offset, piece.box.sizes[d], &offset)) {
        CompactReader::fail("an offset is too large");
      }
      piece.box.offsets.push_back(offset);
    }
    return piece;
  }

  std::vector<ShardEntry> pieces() {
    std::vector<ShardEntry> pieces;
    for (std::size_t count = form_.count(); count > 0; --count) pieces.push_back(piece());
    return pieces;
  }

  MeshLayout layout() {
    const std::uint64_t number = below(layouts_.size() + 1);
    if (number == layouts_.size()) {
      MeshLayout& made = layouts_.emplace_back();
      made.mesh_shape = dims();
      made.mesh = dims();
      for (std::size_t count = form_.count(); count > 0; --count) made.dim_map.push_back(dims());
    }
    return layouts_[static_cast<std::size_t>(number)];
  }

  void read(Entry& entry) {
    switch (static_cast<Kind>(below(8))) {
      case Kind::kTensor:
        entry = tensor();
        return;
      case Kind::kChunked: {
        ChunkedTensorEntry e;
        e.replicated = replicated();
        e.dtype = dtype();
        e.shape = dims();
        e.chunks = pieces();
        entry = std::move(e);
        return;
      }
      case Kind::kSharded: {
        ShardedTensorEntry e;
        e.layout = layout();
        e.shards = pieces();
        entry = std::move(e);
        return;
      }
      case Kind::kObject: {
        ObjectEntry e;
        e.replicated = replicated();
        e.location = location();
        e.serializer = serializer();
        e.obj_type = form_.text();
        entry = std::move(e);
        return;
      }
      case Kind::kPrimitive: {
        PrimitiveEntry e;
        e.replicated = replicated();
        e.type = static_cast<PrimitiveType>(below(kPrimitives));
        e.serialized_value = values_.text();
        if (values_.number() != 0) e.readable = values_.text();
        entry = std::move(e);
        return;
      }
      case Kind::kList:
        entry = ListEntry{};
        return;
      case Kind::kDict:
        entry = DictEntry{keys(), false};
        return;
      case Kind::kOrderedDict:
        entry = DictEntry{keys(), true};
        return;
    }
  }

  std::vector<Key> keys() {
    std::vector<Key> keys;
    for (std::size_t count = form_.count(); count > 0; --count) {
      const bool is_int = below(2) != 0;
      Key key{std::string(form_.text())};
      key.is_int = is_int;
      keys.push_back(std::move(key));
    }
    return keys;
  }

  CompactReader form_;
  CompactReader places_;
  CompactReader values_;
  const std::string rank_;
  const std::string prefix_;
  const std::string folder_;
  std::string path_;
  std::vector<std::vector<std::uint64_t>> known_places_;
  std::vector<MeshLayout> layouts_;
};

}  // namespace

CompactPart encode_part(const Manifest& part, std::int64_t rank, std::string_view take_id) {
  Encoder encoder(rank, take_id);
  for (const auto& [path, entry] : part) encoder.add(split_rank(path).second, entry);
  return encoder.take();
}

void decode_part(const CompactPart& part, std::int64_t rank, std::string_view take_id, Manifest& out) {
  Decoder(part, std::to_string(rank), take_id).run(out);
}

CompactPart encode_entries(ItemPointers items, std::string_view take_id) {
  Encoder encoder(-1, take_id);
  for (const Manifest::Item* item : items) encoder.add(item->first, item->second);
  return encoder.take();
}

void decode_entries(const CompactPart& part, std::string_view take_id, Manifest& out) {
  Decoder(part, {}, take_id).run(out);
}

std::string serialize(const CompactPart& part) {
  CompactWriter writer;
  writer.text(part.form);
  writer.text(part.places);
  writer.text(part.values);
  return writer.take();
}

CompactPart parse_part(std::string_view bytes) {
  CompactReader reader(bytes);
  CompactPart part;
  part.form = reader.text();
  part.places = reader.text();
  part.values = reader.text();
  if (!reader.at_end()) CompactReader::fail("something is left over");
  return part;
}

}  // namespace torchsnapshot
