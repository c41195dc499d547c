// A coordinator that counts what goes over another one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "torchsnapshot/coordinator.h"

namespace torchsnapshot {

/// Passes every call on. What a rank receives counts without its own part.
class CountedCoordinator final : public Coordinator {
 public:
  explicit CountedCoordinator(Coordinator& inner) : inner_(inner) {}

  [[nodiscard]] const ExchangeFigures& figures() const noexcept { return figures_; }

  [[nodiscard]] std::int64_t rank() const override { return inner_.rank(); }
  [[nodiscard]] std::int64_t world_size() const override { return inner_.world_size(); }
  std::string broadcast(const std::string& bytes) override {
    std::string got = inner_.broadcast(bytes);
    count(rank() == 0 ? bytes.size() : 0, rank() == 0 ? 0 : got.size());
    return got;
  }
  std::vector<std::string> all_gather(const std::string& bytes, std::size_t limit) override {
    return counted(bytes, inner_.all_gather(bytes, limit));
  }
  std::vector<std::string> gather(const std::string& bytes) override { return counted(bytes, inner_.gather(bytes)); }
  std::vector<std::string> gather_within(const std::string& bytes, std::size_t limit) override {
    return counted(bytes, inner_.gather_within(bytes, limit));
  }
  std::vector<std::string> gather_from(const std::vector<std::int64_t>& senders, const std::string& bytes) override {
    auto got = inner_.gather_from(senders, bytes);
    std::uint64_t received = 0;
    for (const std::string& one : got) received += one.size();
    bool is_sender = false;
    for (const std::int64_t sender : senders) is_sender = is_sender || sender == rank();
    count(is_sender ? bytes.size() : 0, received);
    return got;
  }
  std::vector<std::uint64_t> all_sum(const std::vector<std::uint64_t>& numbers) override {
    auto sums = inner_.all_sum(numbers);
    count(numbers.size() * sizeof(std::uint64_t), sums.size() * sizeof(std::uint64_t));
    return sums;
  }
  KeyValueStore& store() override { return inner_.store(); }
  [[nodiscard]] bool can_hand_round() const override { return inner_.can_hand_round(); }
  void hand_round(std::span<const HandedPart> parts) override {
    inner_.hand_round(parts);
    std::uint64_t sent = 0;
    std::uint64_t received = 0;
    for (const HandedPart& part : parts) (part.owner == rank() ? sent : received) += part.bytes.size();
    count(sent, received);
  }

 private:
  void count(std::uint64_t sent, std::uint64_t received) {
    ++figures_.exchanges;
    figures_.bytes_sent += sent;
    figures_.bytes_received += received;
  }
  std::vector<std::string> counted(const std::string& bytes, std::vector<std::string> got) {
    std::uint64_t received = 0;
    for (std::size_t from = 0; from < got.size(); ++from) {
      if (static_cast<std::int64_t>(from) != rank()) received += got[from].size();
    }
    count(bytes.size(), received);
    return got;
  }

  Coordinator& inner_;
  ExchangeFigures figures_;
};

}  // namespace torchsnapshot
