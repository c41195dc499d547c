// Objects in memory. A finished object never changes; publish puts another in its place, so readers keep what they
// opened.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#include "storage/location.h"
#include "storage/object_checks.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {
namespace {

struct Object {
  explicit Object(std::uint64_t object_size) : size(object_size), bytes(new std::byte[object_size]) {}
  const std::uint64_t size;
  const std::unique_ptr<std::byte[]> bytes;
  bool finished = false;  ///< guarded by the place's mutex; before, only its writer knows the object
  std::chrono::system_clock::time_point modified = std::chrono::system_clock::now();  ///< likewise
};

/// The objects of one name, shared by all storages that opened it.
struct Place {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<Object>, std::less<>> objects;
};

/// Places live as long as the process; an empty one costs next to nothing.
std::shared_ptr<Place> place_of(const std::string& name) {
  static std::mutex mutex;
  static auto& places = *new std::map<std::string, std::shared_ptr<Place>>;  // used by threads until the very end
  const std::lock_guard lock(mutex);
  auto& place = places[name];
  if (!place) place = std::make_shared<Place>();
  return place;
}

std::shared_ptr<Object> make_object(std::uint64_t size, const std::string& name) {
  try {
    return std::make_shared<Object>(size);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kNoSpace, "create " + name + ": no memory for " + std::to_string(size) + " bytes");
  }
}

class MemoryWriter final : public ObjectWriter {
 public:
  MemoryWriter(std::shared_ptr<Place> place, std::string location, std::shared_ptr<Object> object, std::string name,
               std::stop_token stop)
      : place_(std::move(place)),
        location_(std::move(location)),
        object_(std::move(object)),
        name_(std::move(name)),
        progress_(object_->size),
        stop_(std::move(stop)) {}

  ~MemoryWriter() override {
    const std::lock_guard lock(place_->mutex);
    if (object_->finished) return;
    const auto found = place_->objects.find(location_);
    // Somebody may have removed ours and made another of that name.
    if (found != place_->objects.end() && found->second == object_) place_->objects.erase(found);
  }

  void write(std::uint64_t offset, std::span<const std::byte> data) override {
    progress_.check_block(offset, data.size(), name_);
    check_stop(stop_, "write", name_);
    if (!data.empty()) std::memcpy(object_->bytes.get() + offset, data.data(), data.size());
    progress_.add(data.size());
  }

  void finish() override {
    progress_.check_complete(name_);
    check_stop(stop_, "finish", name_);
    const std::lock_guard lock(place_->mutex);
    object_->finished = true;
    object_->modified = std::chrono::system_clock::now();
  }

 private:
  std::shared_ptr<Place> place_;
  std::string location_;
  std::shared_ptr<Object> object_;
  std::string name_;
  WriteProgress progress_;
  std::stop_token stop_;
};

class MemoryReader final : public ObjectReader {
 public:
  MemoryReader(std::shared_ptr<const Object> object, std::string name, std::stop_token stop)
      : object_(std::move(object)), name_(std::move(name)), stop_(std::move(stop)) {}

  void read(std::uint64_t offset, std::span<std::byte> out) override {
    check_stop(stop_, "read", name_);
    check_read(offset, out.size(), object_->size, name_);
    if (!out.empty()) std::memcpy(out.data(), object_->bytes.get() + offset, out.size());
  }
  std::optional<SharedBytes> view(std::uint64_t offset, std::size_t size) override {
    check_stop(stop_, "read", name_);
    check_read(offset, size, object_->size, name_);
    return SharedBytes({object_->bytes.get() + offset, size}, object_);
  }

 private:
  std::shared_ptr<const Object> object_;
  std::string name_;
  std::stop_token stop_;
};

class MemoryStorage final : public Storage {
 public:
  explicit MemoryStorage(const std::string& name) : url_("memory://" + name), place_(place_of(name)) {}

  [[nodiscard]] std::string url() const override { return url_; }

  std::unique_ptr<ObjectWriter> create(const std::string& location, std::uint64_t size, std::stop_token stop) override {
    std::string normal = normalize_location(location);
    std::string name = name_of(normal);
    check_stop(stop, "create", name);
    auto object = make_object(size, name);
    {
      const std::lock_guard lock(place_->mutex);
      if (!place_->objects.emplace(normal, object).second) {
        throw Error(ErrorCode::kAlreadyExists, "create " + name + ": it exists");
      }
    }
    return std::make_unique<MemoryWriter>(place_, std::move(normal), std::move(object), std::move(name),
                                          std::move(stop));
  }

  std::unique_ptr<ObjectReader> open(const std::string& location, std::stop_token stop) override {
    const std::string normal = normalize_location(location);
    check_stop(stop, "open", name_of(normal));
    return std::make_unique<MemoryReader>(find(normal), name_of(normal), std::move(stop));
  }

  std::string read_all(const std::string& location, std::uint64_t limit, std::stop_token stop) override {
    const std::string normal = normalize_location(location);
    check_stop(stop, "open", name_of(normal));
    const auto object = find(normal);
    check_limit(object->size, limit, name_of(normal));
    return {reinterpret_cast<const char*>(object->bytes.get()), object->size};
  }

  std::vector<std::optional<std::uint64_t>> sizes(std::span<const std::string> locations,
                                                  std::stop_token stop) override {
    std::vector<std::optional<std::uint64_t>> sizes;
    sizes.reserve(locations.size());
    for (const std::string& location : locations) {
      const std::string normal = normalize_location(location);
      check_stop(stop, "stat", name_of(normal));
      sizes.emplace_back(find(normal)->size);
    }
    return sizes;
  }

  void sync() override {}

  void publish(const std::string& location, std::string_view content) override {
    const std::string normal = normalize_location(location);
    auto object = make_object(content.size(), name_of(normal));
    std::copy_n(std::as_bytes(std::span(content)).begin(), content.size(), object->bytes.get());
    object->finished = true;
    const std::lock_guard lock(place_->mutex);
    place_->objects.insert_or_assign(normal, std::move(object));
  }

  std::vector<std::string> list(const std::string& prefix) override {
    std::vector<std::string> locations;
    for (ObjectInfo& object : list_objects(prefix)) locations.push_back(std::move(object.location));
    return locations;
  }

  std::vector<ObjectInfo> list_objects(const std::string& prefix) override {
    std::vector<ObjectInfo> objects;
    const std::lock_guard lock(place_->mutex);
    for (auto item = place_->objects.lower_bound(prefix);
         item != place_->objects.end() && item->first.starts_with(prefix); ++item) {
      const Object& object = *item->second;
      if (object.finished) objects.push_back({item->first, object.size, object.modified});
    }
    return objects;
  }

  void remove(std::span<const std::string> locations) override {
    std::vector<std::string> normal;
    normal.reserve(locations.size());
    for (const std::string& location : locations) normal.push_back(normalize_location(location));
    const std::lock_guard lock(place_->mutex);
    for (const std::string& location : normal) place_->objects.erase(location);
  }

 private:
  [[nodiscard]] std::string name_of(const std::string& location) const { return url_ + "/" + location; }

  [[nodiscard]] std::shared_ptr<const Object> find(const std::string& location) const {
    const std::lock_guard lock(place_->mutex);
    const auto found = place_->objects.find(location);
    if (found == place_->objects.end() || !found->second->finished) {
      throw Error(ErrorCode::kNotFound, "open " + name_of(location) + ": there is no such object");
    }
    return found->second;
  }

  std::string url_;
  std::shared_ptr<Place> place_;
};

}  // namespace

std::shared_ptr<Storage> open_memory_storage(const std::string& name) {
  return std::make_shared<MemoryStorage>(name);
}

}  // namespace torchsnapshot
