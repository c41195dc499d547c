#include "torchsnapshot/manifest.h"

#include <bit>
#include <functional>
#include <limits>
#include <type_traits>

#include "core/text.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

template <typename... Fs>
struct Overloaded : Fs... {
  using Fs::operator()...;
};
template <typename... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;

}  // namespace

std::string_view entry_type_name(const Entry& entry) noexcept {
  return std::visit(Overloaded{
                        [](const TensorEntry&) -> std::string_view { return "Tensor"; },
                        [](const ChunkedTensorEntry&) -> std::string_view { return "ChunkedTensor"; },
                        [](const ShardedTensorEntry& e) -> std::string_view {
                          return e.layout.mesh_shape.empty() ? "ShardedTensor" : "DTensor";
                        },
                        [](const ObjectEntry&) -> std::string_view { return "object"; },
                        [](const PrimitiveEntry& e) -> std::string_view {
                          switch (e.type) {
                            case PrimitiveType::kInt:
                              return "int";
                            case PrimitiveType::kStr:
                              return "str";
                            case PrimitiveType::kBool:
                              return "bool";
                            case PrimitiveType::kBytes:
                              return "bytes";
                            case PrimitiveType::kFloat:
                              return "float";
                          }
                          return "";
                        },
                        [](const ListEntry&) -> std::string_view { return "list"; },
                        [](const DictEntry& e) -> std::string_view { return e.ordered ? "OrderedDict" : "dict"; },
                    },
                    entry);
}

bool is_container(const Entry& entry) noexcept {
  return std::holds_alternative<ListEntry>(entry) || std::holds_alternative<DictEntry>(entry);
}

bool is_replicated(const Entry& entry) noexcept {
  return std::visit(
      [](const auto& e) {
        if constexpr (requires { e.replicated; }) {
          return e.replicated;
        } else {
          return false;
        }
      },
      entry);
}

std::vector<ShardEntry> stored_pieces(const Entry& entry) {
  if (const auto* tensor = std::get_if<TensorEntry>(&entry)) return {{Box::whole(tensor->shape), *tensor}};
  if (const auto* chunked = std::get_if<ChunkedTensorEntry>(&entry)) return chunked->chunks;
  if (const auto* sharded = std::get_if<ShardedTensorEntry>(&entry)) return sharded->shards;
  return {};
}

std::vector<std::string_view> entry_locations(const Entry& entry) {
  std::vector<std::string_view> locations;
  const auto add_pieces = [&locations](const std::vector<ShardEntry>& pieces) {
    locations.reserve(pieces.size());
    for (const ShardEntry& piece : pieces) locations.emplace_back(piece.tensor.location);
  };
  if (const auto* tensor = std::get_if<TensorEntry>(&entry)) locations.emplace_back(tensor->location);
  if (const auto* object = std::get_if<ObjectEntry>(&entry)) locations.emplace_back(object->location);
  if (const auto* chunked = std::get_if<ChunkedTensorEntry>(&entry)) add_pieces(chunked->chunks);
  if (const auto* sharded = std::get_if<ShardedTensorEntry>(&entry)) add_pieces(sharded->shards);
  return locations;
}

void Manifest::add(std::string_view path, Entry entry) {
  Entry* const place = try_emplace(path);
  if (place == nullptr) throw Error(ErrorCode::kCorrupt, "the manifest has two entries " + quote_text(path));
  *place = std::move(entry);
}

Entry* Manifest::try_emplace(std::string_view path) {
  if ((items_.size() + 1) * 4 > slots_.size() * 3) grow(slots_.empty() ? 16 : slots_.size() * 2);
  const std::size_t hash = std::hash<std::string_view>{}(path);
  Slot& slot = slots_[slot_of(path, hash)];
  if (slot.number != 0) return nullptr;
  if (items_.size() >= std::numeric_limits<std::uint32_t>::max()) {
    throw Error(ErrorCode::kUnsupported, "a manifest holds at most 4294967295 entries");
  }
  Item& item = items_.emplace_back(path, Entry());
  slot = {static_cast<std::uint32_t>(items_.size()), static_cast<std::uint32_t>(hash)};
  return &item.second;
}

void Manifest::reserve(std::size_t entries) {
  const std::size_t slots = std::bit_ceil(entries / 3 * 4 + 16);
  if (slots > slots_.size()) grow(slots);
}

const Entry* Manifest::find(std::string_view path) const noexcept {
  if (slots_.empty()) return nullptr;
  const std::uint32_t number = slots_[slot_of(path, std::hash<std::string_view>{}(path))].number;
  return number == 0 ? nullptr : &items_[number - 1].second;
}

std::size_t Manifest::slot_of(std::string_view path, std::size_t hash) const noexcept {
  const std::size_t mask = slots_.size() - 1;
  const auto tag = static_cast<std::uint32_t>(hash);
  std::size_t at = tag & mask;
  while (slots_[at].number != 0 && (slots_[at].hash != tag || items_[slots_[at].number - 1].first != path)) {
    at = (at + 1) & mask;
  }
  return at;
}

void Manifest::grow(std::size_t slots) {
  // The place follows from the 32 bits that are kept, so no path is hashed again.
  std::vector<Slot> larger(slots);
  for (const Slot& slot : slots_) {
    if (slot.number == 0) continue;
    std::size_t at = slot.hash & (larger.size() - 1);
    while (larger[at].number != 0) at = (at + 1) & (larger.size() - 1);
    larger[at] = slot;
  }
  slots_ = std::move(larger);
}

}  // namespace torchsnapshot
