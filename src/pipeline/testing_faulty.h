// A Storage for tests: counts the calls of another one, and makes one of them fail.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "storage/testing_forward.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// Passes every call on, except the `fail_at`-th (counting from 0), which throws Error(kIo, "injected"). Thread-safe.
class FaultyStorage final : public ForwardingStorage {
 public:
  static constexpr std::int64_t kNever = -1;

  FaultyStorage(std::shared_ptr<Storage> inner, std::int64_t fail_at)
      : ForwardingStorage(std::move(inner)), fail_at_(fail_at) {}

  [[nodiscard]] std::int64_t calls() const noexcept { return calls_; }

  std::unique_ptr<ObjectWriter> create(const std::string& location, std::uint64_t size, std::stop_token stop) override {
    count("create");
    return std::make_unique<Writer>(*this, inner_->create(location, size, std::move(stop)));
  }
  std::unique_ptr<ObjectReader> open(const std::string& location, std::stop_token stop) override {
    count("open");
    return std::make_unique<Reader>(*this, inner_->open(location, std::move(stop)));
  }
  std::string read_all(const std::string& location, std::uint64_t limit, std::stop_token stop) override {
    count("read_all");
    return inner_->read_all(location, limit, std::move(stop));
  }
  std::vector<std::optional<std::uint64_t>> sizes(std::span<const std::string> locations,
                                                  std::stop_token stop) override {
    count("sizes");
    return inner_->sizes(locations, std::move(stop));
  }
  void sync() override {
    count("sync");
    inner_->sync();
  }
  void publish(const std::string& location, std::string_view content) override {
    count("publish");
    inner_->publish(location, content);
  }
  void remove(std::span<const std::string> locations) override {
    count("remove");
    inner_->remove(locations);
  }

 private:
  class Writer final : public ObjectWriter {
   public:
    Writer(FaultyStorage& owner, std::unique_ptr<ObjectWriter> inner) : owner_(owner), inner_(std::move(inner)) {}
    void write(std::uint64_t offset, std::span<const std::byte> data) override {
      owner_.count("write");
      inner_->write(offset, data);
    }
    void finish() override {
      owner_.count("finish");
      inner_->finish();
    }

   private:
    FaultyStorage& owner_;
    std::unique_ptr<ObjectWriter> inner_;
  };

  class Reader final : public ObjectReader {
   public:
    Reader(FaultyStorage& owner, std::unique_ptr<ObjectReader> inner) : owner_(owner), inner_(std::move(inner)) {}
    void read(std::uint64_t offset, std::span<std::byte> out) override {
      owner_.count("read");
      inner_->read(offset, out);
    }
    std::optional<SharedBytes> view(std::uint64_t offset, std::size_t size) override {
      owner_.count("view");
      return inner_->view(offset, size);
    }

   private:
    FaultyStorage& owner_;
    std::unique_ptr<ObjectReader> inner_;
  };

  void count(const char* call) {
    if (calls_.fetch_add(1) == fail_at_) throw Error(ErrorCode::kIo, std::string(call) + ": injected");
  }

  std::int64_t fail_at_;
  std::atomic<std::int64_t> calls_{0};
};

}  // namespace torchsnapshot
