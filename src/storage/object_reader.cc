#include <algorithm>
#include <utility>
#include <vector>

#include "storage/object_checks.h"
#include "storage/object_store.h"

namespace torchsnapshot {
namespace {

/// What opening an object reads of it: a small object needs no second request.
constexpr std::size_t kFrontBytes = 64 << 10;

class RangeReader final : public ObjectReader {
 public:
  RangeReader(std::shared_ptr<ObjectApi> api, std::string key, std::string name, std::stop_token stop)
      : api_(std::move(api)), key_(std::move(key)), name_(std::move(name)), stop_(std::move(stop)) {
    front_.resize(kFrontBytes);
    std::size_t count = 0;
    facts_ = api_->get_front(key_, front_, count, stop_);
    front_.resize(count);
    front_.shrink_to_fit();
  }

  void read(std::uint64_t offset, std::span<std::byte> out) override { read_placing(offset, out, nullptr); }

  void read_placing(std::uint64_t offset, std::span<std::byte> out, const PlaceBytes& place) override {
    check_stop(stop_, "read", name_);
    check_read(offset, out.size(), facts_.size, name_);
    if (out.empty()) return;
    std::size_t done = 0;
    if (offset < front_.size()) {
      done = std::min<std::size_t>(out.size(), front_.size() - offset);
      // A large read is one request, whatever is there already.
      if (done < out.size() / 2) done = 0;
      const auto there = std::span<const std::byte>(front_).subspan(offset, done);
      if (place && done > 0) {
        place(offset, out.first(done), there);
      } else {
        std::copy(there.begin(), there.end(), out.begin());
      }
    }
    if (done < out.size()) api_->get_range(key_, facts_, offset + done, out.subspan(done), place, stop_);
  }

 private:
  const std::shared_ptr<ObjectApi> api_;
  const std::string key_;
  const std::string name_;
  const std::stop_token stop_;
  ObjectFacts facts_;
  std::vector<std::byte> front_;
};

}  // namespace

std::unique_ptr<ObjectReader> open_object_reader(std::shared_ptr<ObjectApi> api, std::string key, std::string name,
                                                 std::stop_token stop) {
  return std::make_unique<RangeReader>(std::move(api), std::move(key), std::move(name), std::move(stop));
}

}  // namespace torchsnapshot
