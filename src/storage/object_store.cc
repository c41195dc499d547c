#include "storage/object_store.h"

#include <algorithm>
#include <exception>
#include <functional>
#include <limits>
#include <tuple>
#include <utility>

#include "exec/task_group.h"
#include "storage/location.h"
#include "storage/object_checks.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

/// Requests that wait for their answers while others move data, at most.
constexpr std::size_t kMostWaiting = 8;

class ObjectStore final : public Storage {
 public:
  explicit ObjectStore(std::shared_ptr<ObjectApi> api)
      : api_(std::move(api)), settings_(api_->client().settings()), names_(std::make_shared<NamesInWork>()) {}

  [[nodiscard]] std::string url() const override { return settings_.url(); }
  // A part that is one block goes out from where it lies, and each request moves as much as the settings say.
  [[nodiscard]] std::uint64_t block_bytes() const noexcept override { return settings_.part_bytes; }

  std::size_t limit_transfers(std::size_t most) override {
    api_->client().gate().set_limit(most);
    return most + std::min(most, kMostWaiting);
  }

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
    if (normal.size() > settings_.concurrency) sizes_by_list(normal, sizes, stop);
    for_each(normal.size(), stop, [&](std::size_t i, const std::stop_token& group_stop) {
      if (sizes[i]) return;
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
    std::vector<std::string> locations;
    for (ObjectInfo& object : list_objects(prefix)) locations.push_back(std::move(object.location));
    return locations;
  }

  std::vector<ObjectInfo> list_objects(const std::string& prefix) override {
    std::vector<ObjectInfo> objects;
    for (ListedObject& object : api_->list(root() + prefix, std::numeric_limits<std::size_t>::max(), {})) {
      object.key.erase(0, root().size());
      // Consoles of stores make an empty object "x/" for a folder; as a location that would be another object.
      if (object.key.empty() || object.key.ends_with('/')) continue;
      objects.push_back({std::move(object.key), object.size, object.modified});
    }
    std::sort(objects.begin(), objects.end(), [](const auto& a, const auto& b) { return a.location < b.location; });
    return objects;
  }

  std::vector<UnfinishedObject> list_unfinished(const std::string& prefix) override {
    const std::vector<ListedUpload> uploads = api_->list_uploads(root() + prefix, {});
    std::vector<std::optional<UploadFacts>> facts(uploads.size());
    for_each(uploads.size(), {}, [&](std::size_t i, const std::stop_token& group_stop) {
      facts[i] = api_->upload_facts(uploads[i], group_stop);
    });
    std::vector<UnfinishedObject> objects;
    for (std::size_t i = 0; i < uploads.size(); ++i) {
      if (!facts[i]) continue;  // completed or aborted meanwhile
      objects.push_back({.location = uploads[i].key.substr(root().size()),
                         .id = uploads[i].id,
                         .bytes = facts[i]->bytes,
                         .modified = std::max(facts[i]->newest, uploads[i].begun)});
    }
    std::sort(objects.begin(), objects.end(),
              [](const auto& a, const auto& b) { return std::tie(a.location, a.id) < std::tie(b.location, b.id); });
    return objects;
  }

  void remove_unfinished(std::span<const UnfinishedObject> objects) override {
    for_all(objects.size(), [&](std::size_t i) {
      api_->remove_upload({.key = root() + objects[i].location, .id = objects[i].id, .begun = {}}, {});
    });
  }

  void remove(std::span<const std::string> locations) override {
    std::vector<std::string> keys;
    keys.reserve(locations.size());
    for (const std::string& location : locations) keys.push_back(key_of(normalize_location(location)));
    for_all(keys.size(), [&](std::size_t i) {
      names_->forget(keys[i]);
      api_->remove(keys[i], {});
    });
  }

  std::vector<std::string> take_notices() override {
    const std::lock_guard lock(mutex_);
    return std::exchange(notices_, {});
  }

 private:
  [[nodiscard]] std::string name_of(const std::string& normal) const { return settings_.url() + "/" + normal; }
  [[nodiscard]] std::string key_of(const std::string& normal) const { return root() + normal; }
  [[nodiscard]] std::string root() const { return settings_.prefix.empty() ? "" : settings_.prefix + "/"; }

  /// Fills in what the listing of the folder that all locations lie in tells: a thousand sizes by one request.
  void sizes_by_list(const std::vector<std::string>& normal, std::vector<std::optional<std::uint64_t>>& sizes,
                     const std::stop_token& stop) {
    std::string_view folder = normal.front();
    for (const std::string& location : normal) {
      const auto end = std::mismatch(folder.begin(), folder.end(), location.begin(), location.end()).first;
      folder = folder.substr(0, static_cast<std::size_t>(end - folder.begin()));
    }
    folder = folder.substr(0, folder.rfind('/') + 1);  // all of it when there is none
    std::unordered_map<std::string, std::optional<std::uint64_t>> listed;
    try {
      // More would take longer than asking for each, several at once.
      for (ListedObject& object : api_->list(root() + std::string(folder), 4 * normal.size(), stop)) {
        listed.emplace(std::move(object.key), object.size);
      }
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kPermissionDenied) throw;
      const std::lock_guard lock(mutex_);
      if (std::exchange(told_of_list_, true)) return;
      notices_.push_back(std::string("the sizes of objects are asked for one by one: ") + error.what());
    }
    for (std::size_t i = 0; i < normal.size(); ++i) {
      const auto found = listed.find(key_of(normal[i]));
      if (found != listed.end()) sizes[i] = found->second;
    }
  }

  /// As for_each, but goes on after a failure, and throws the first one.
  void for_all(std::size_t count, const std::function<void(std::size_t)>& work) const {
    std::mutex mutex;
    std::exception_ptr first;
    for_each(count, {}, [&](std::size_t i, const std::stop_token&) {
      try {
        work(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
    });
    if (first) std::rethrow_exception(first);
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
  std::mutex mutex_;
  std::vector<std::string> notices_;  // guarded by mutex_
  bool told_of_list_ = false;         // guarded by mutex_
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
