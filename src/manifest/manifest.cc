#include "torchsnapshot/manifest.h"

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

void Manifest::add(std::string path, Entry entry) {
  if ((items_.size() + 1) * 4 > slots_.size() * 3) grow();
  const std::size_t slot = slot_of(path);
  if (slots_[slot] != 0) throw Error(ErrorCode::kCorrupt, "the manifest has two entries " + quote_text(path));
  if (items_.size() >= std::numeric_limits<std::uint32_t>::max()) {
    throw Error(ErrorCode::kUnsupported, "a manifest holds at most 4294967295 entries");
  }
  items_.emplace_back(std::move(path), std::move(entry));
  slots_[slot] = static_cast<std::uint32_t>(items_.size());
}

const Entry* Manifest::find(std::string_view path) const noexcept {
  if (slots_.empty()) return nullptr;
  const std::uint32_t found = slots_[slot_of(path)];
  return found == 0 ? nullptr : &items_[found - 1].second;
}

std::size_t Manifest::slot_of(std::string_view path) const noexcept {
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = std::hash<std::string_view>{}(path)&mask;
  while (slots_[slot] != 0 && items_[slots_[slot] - 1].first != path) slot = (slot + 1) & mask;
  return slot;
}

void Manifest::grow() {
  const std::size_t count = slots_.empty() ? 16 : slots_.size() * 2;
  slots_.assign(count, 0);
  std::uint32_t number = 0;
  for (const Item& item : items_) {
    std::size_t slot = std::hash<std::string_view>{}(item.first) & (count - 1);
    while (slots_[slot] != 0) slot = (slot + 1) & (count - 1);
    slots_[slot] = ++number;
  }
}

}  // namespace torchsnapshot
