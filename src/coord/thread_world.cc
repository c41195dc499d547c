#include "coord/thread_world.h"

#include <cstring>
#include <exception>
#include <thread>

#include "torchsnapshot/error.h"

namespace torchsnapshot {

void MemoryKeyValueStore::check() const {
  if (failed_) throw Error(ErrorCode::kIo, "the store is gone");
}

void MemoryKeyValueStore::set(const std::string& key, const std::string& value) {
  check();
  const std::lock_guard lock(mutex_);
  values_[key] = value;
}

std::optional<std::string> MemoryKeyValueStore::get(const std::string& key) {
  check();
  const std::lock_guard lock(mutex_);
  const auto found = values_.find(key);
  return found == values_.end() ? std::nullopt : std::optional(found->second);
}

std::int64_t MemoryKeyValueStore::add(const std::string& key, std::int64_t amount) {
  check();
  const std::lock_guard lock(mutex_);
  return numbers_[key] += amount;
}

std::string MemoryKeyValueStore::set_once(const std::string& key, const std::string& value) {
  check();
  const std::lock_guard lock(mutex_);
  return values_.try_emplace(key, value).first->second;
}

void MemoryKeyValueStore::remove(const std::string& key) {
  check();
  const std::lock_guard lock(mutex_);
  values_.erase(key);
  numbers_.erase(key);
}

std::size_t MemoryKeyValueStore::size() const {
  const std::lock_guard lock(mutex_);
  return values_.size() + numbers_.size();
}

class ThreadWorld::Rank final : public Coordinator {
 public:
  Rank(ThreadWorld& world, std::int64_t rank) : world_(world), rank_(rank) {}

  [[nodiscard]] std::int64_t rank() const override { return rank_; }
  [[nodiscard]] std::int64_t world_size() const override { return static_cast<std::int64_t>(world_.ranks_.size()); }

  std::string broadcast(const std::string& bytes) override { return world_.exchange(rank_, bytes).front(); }

  std::vector<std::string> all_gather(const std::string& bytes, std::size_t limit) override {
    if (bytes.size() > limit) throw Error(ErrorCode::kInternal, "a message is longer than its limit");
    return world_.exchange(rank_, bytes);
  }

  std::vector<std::string> gather(const std::string& bytes) override {
    auto all = world_.exchange(rank_, bytes);
    if (rank_ != 0) all.clear();
    return all;
  }

  KeyValueStore& store() override { return world_.store_; }

  [[nodiscard]] bool can_hand_round() const override { return true; }
  void hand_round(std::span<const HandedPart> parts) override {
    std::string mine;
    for (const HandedPart& part : parts) {
      if (part.owner == rank_) mine.append(reinterpret_cast<const char*>(part.bytes.data()), part.bytes.size());
    }
    world_.handed_bytes_ += mine.size();
    const std::vector<std::string> all = world_.exchange(rank_, mine);
    std::vector<std::size_t> at(all.size());
    for (const HandedPart& part : parts) {
      const auto owner = static_cast<std::size_t>(part.owner);
      if (part.owner != rank_) std::memcpy(part.bytes.data(), all.at(owner).data() + at[owner], part.bytes.size());
      at[owner] += part.bytes.size();
    }
  }

 private:
  ThreadWorld& world_;
  const std::int64_t rank_;
};

ThreadWorld::ThreadWorld(std::int64_t size) : bytes_(static_cast<std::size_t>(size)) {
  for (std::int64_t rank = 0; rank < size; ++rank) ranks_.push_back(std::make_unique<Rank>(*this, rank));
}

ThreadWorld::~ThreadWorld() = default;

Coordinator& ThreadWorld::rank(std::int64_t rank) {
  return *ranks_.at(static_cast<std::size_t>(rank));
}

std::vector<std::string> ThreadWorld::exchange(std::int64_t rank, const std::string& bytes) {
  std::unique_lock lock(mutex_);
  if (rank == 0) ++exchanges_;
  bytes_[static_cast<std::size_t>(rank)] = bytes;
  const std::uint64_t round = round_;
  if (++present_ == ranks_.size()) {
    present_ = 0;
    result_ = bytes_;
    ++round_;
    changed_.notify_all();
  }
  changed_.wait(lock, [&] { return round_ != round || gone_ >= 0; });
  if (round_ == round) {
    --present_;
    throw Error(ErrorCode::kIo, "an exchange failed: rank " + std::to_string(gone_) + " is gone");
  }
  return result_;
}

void ThreadWorld::leave(std::int64_t rank) {
  const std::lock_guard lock(mutex_);
  if (gone_ < 0) gone_ = rank;
  changed_.notify_all();
}

std::vector<std::string> ThreadWorld::run(const std::function<void(Coordinator&)>& body) {
  std::vector<std::string> errors(ranks_.size());
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < ranks_.size(); ++i) {
      threads.emplace_back([&, i] {
        try {
          body(*ranks_[i]);
        } catch (const std::exception& error) {
          errors[i] = error.what();
        }
        leave(static_cast<std::int64_t>(i));
      });
    }
  }
  const std::lock_guard lock(mutex_);
  gone_ = -1;
  return errors;
}

}  // namespace torchsnapshot
