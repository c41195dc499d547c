// A Storage for tests that passes every call on; a test overrides those it is about.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "torchsnapshot/storage.h"

namespace torchsnapshot {

class ForwardingStorage : public Storage {
 public:
  explicit ForwardingStorage(std::shared_ptr<Storage> inner) : inner_(std::move(inner)) {}

  [[nodiscard]] std::string url() const override { return inner_->url(); }
  std::unique_ptr<ObjectWriter> create(const std::string& location, std::uint64_t size, std::stop_token stop) override {
    return inner_->create(location, size, std::move(stop));
  }
  std::unique_ptr<ObjectReader> open(const std::string& location, std::stop_token stop) override {
    return inner_->open(location, std::move(stop));
  }
  std::string read_all(const std::string& location, std::uint64_t limit, std::stop_token stop) override {
    return inner_->read_all(location, limit, std::move(stop));
  }
  std::vector<std::optional<std::uint64_t>> sizes(std::span<const std::string> locations,
                                                  std::stop_token stop) override {
    return inner_->sizes(locations, std::move(stop));
  }
  void sync() override { inner_->sync(); }
  void publish(const std::string& location, std::string_view content) override { inner_->publish(location, content); }
  std::vector<std::string> list(const std::string& prefix) override { return inner_->list(prefix); }
  std::vector<ObjectInfo> list_objects(const std::string& prefix) override { return inner_->list_objects(prefix); }
  void remove(std::span<const std::string> locations) override { inner_->remove(locations); }
  [[nodiscard]] std::uint64_t block_bytes() const noexcept override { return inner_->block_bytes(); }
  std::size_t limit_transfers(std::size_t most) override { return inner_->limit_transfers(most); }
  std::vector<std::string> take_notices() override { return inner_->take_notices(); }
  std::vector<UnfinishedObject> list_unfinished(const std::string& prefix) override {
    return inner_->list_unfinished(prefix);
  }
  void remove_unfinished(std::span<const UnfinishedObject> objects) override { inner_->remove_unfinished(objects); }

 protected:
  const std::shared_ptr<Storage> inner_;
};

}  // namespace torchsnapshot
