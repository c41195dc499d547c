#include "storage/object_store.h"

#include <algorithm>
#include <exception>
#include <functional>
#include <utility>

#include "exec/task_group.h"
#include "storage/location.h"
#include "storage/object_checks.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

class ObjectStore final : public Storage {
 public:
  explicit ObjectStore(std::shared_ptr<ObjectApi> api)
      : api_(std::move(api)), settings_(api_->client().settings()), names_(std::make_shared<NamesInWork>()) {}

  [[nodiscard]] std::string url() const override { return settings_.url(); }

  std::unique_ptr<ObjectWriter> create(const std::string& location, std::uint64_t size, std::stop_token stop) override {
    const std::string normal = normalize_location(location);
    const std::string name = name_of(normal);
    check_stop(stop, "create", name);
    const std::string key = key_of(normal);
    const std::uint64_t ticket = names_->take(key);
    // Completion is conditional too, but not every store heeds that, and here nothing has been sent in vain.
    try {
      if (ticket == 0 || api_->head(key, stop)) {
        throw Error(ErrorCode::kAlreadyExists, "create " + name + ": it exists");
      }
      return make_part_writer(api_, names_, ticket, key, name, size, std::move(stop));
    } catch (...) {
      if (ticket != 0) names_->give_back(key, ticket);
      throw;
    }
  }

  std::unique_ptr<ObjectReader> open(const std::string& location, std::stop_token stop) override {
    const std::string normal = normalize_location(location);
    check_stop(stop, "open", name_of(normal));
    return open_object_reader(api_, key_of(normal), name_of(normal), std::move(stop));
  }

  std::string read_all(const std::string& location, std::uint64_t limit, std::stop_token stop) override {
    const std::string normal = normalize_location(location);
    check_stop(stop, "open", name_of(normal));
    return api_->get_all(key_of(normal), limit, stop);
  }

  std::vector<std::optional<std::uint64_t>> sizes(std::span<const std::string> locations,
                                                  std::stop_token stop) override {
    std::vector<std::string> normal;
    normal.reserve(locations.size());
    for (const std::string& location : locations) {
      normal.push_back(normalize_location(location));
      check_stop(stop, "stat", name_of(normal.back()));
    }
    std::vector<std::optional<std::uint64_t>> sizes(locations.size());
    for_each(normal.size(), stop, [&](std::size_t i, const std::stop_token& group_stop) {
      const auto facts = api_->head(key_of(normal[i]), group_stop);
      if (facts) sizes[i] = facts->size;
    });
    const auto missing = std::find(sizes.begin(), sizes.end(), std::nullopt);
    if (missing != sizes.end()) {
      throw Error(ErrorCode::kNotFound,
                  "stat " + name_of(normal[static_cast<std::size_t>(missing - sizes.begin())]) + ": no such object");
    }
    return sizes;
  }

  // A store has an object for good when it says so.
  void sync() override {}

  void publish(const std::string& location, std::string_view content) override {
    api_->put(key_of(normalize_location(location)), std::as_bytes(std::span(content)), /*only_new=*/false, {});
  }

  std::vector<std::string> list(const std::string& prefix) override {
    const std::string root = settings_.prefix.empty() ? "" : settings_.prefix + "/";
    std::vector<std::string> locations = api_->list(root + prefix, {});
    for (std::string& key : locations) key.erase(0, root.size());
    // Consoles of stores make an empty object "x/" for a folder; as a location that would be another object.
    std::erase_if(locations, [](const std::string& name) { return name.empty() || name.ends_with('/'); });
    std::sort(locations.begin(), locations.end());
    return locations;
  }

  void remove(std::span<const std::string> locations) override {
    std::vector<std::string> keys;
    keys.reserve(locations.size());
    for (const std::string& location : locations) keys.push_back(key_of(normalize_location(location)));
    std::mutex mutex;
    std::exception_ptr first;
    for_each(keys.size(), {}, [&](std::size_t i, const std::stop_token&) {
      try {
        names_->forget(keys[i]);
        api_->remove(keys[i], {});
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
    });
    if (first) std::rethrow_exception(first);
  }

 private:
  [[nodiscard]] std::string name_of(const std::string& normal) const { return settings_.url() + "/" + normal; }
  [[nodiscard]] std::string key_of(const std::string& normal) const {
    return settings_.prefix.empty() ? normal : settings_.prefix + "/" + normal;
  }

  /// Calls `work` for 0 to count - 1 on several threads.
  void for_each(std::size_t count, const std::stop_token& stop,
                const std::function<void(std::size_t, const std::stop_token&)>& work) const {
    if (count <= 1) {
      if (count == 1) work(0, stop);
      return;
    }
    ThreadPool threads(std::min<std::size_t>(count, settings_.concurrency));
    TaskGroup group(threads, stop);
    for (std::size_t i = 0; i < count; ++i) {
      group.run([i, &work, token = group.stop_token()] { work(i, token); });
    }
    group.wait();
  }

  const std::shared_ptr<ObjectApi> api_;
  const StoreSettings& settings_;
  const std::shared_ptr<NamesInWork> names_;
};

}  // namespace

std::uint64_t NamesInWork::take(const std::string& key) {
  const std::lock_guard lock(mutex_);
  const auto [position, is_new] = names_.try_emplace(key, next_);
  return is_new ? next_++ : 0;
}

void NamesInWork::give_back(const std::string& key, std::uint64_t ticket) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = names_.find(key);
  if (found != names_.end() && found->second == ticket) names_.erase(found);
}

void NamesInWork::forget(const std::string& key) {
  const std::lock_guard lock(mutex_);
  names_.erase(key);
}

std::shared_ptr<Storage> make_object_store(std::shared_ptr<ObjectApi> api) {
  return std::make_shared<ObjectStore>(std::move(api));
}

}  // namespace torchsnapshot
