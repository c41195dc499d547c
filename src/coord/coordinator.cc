#include "torchsnapshot/coordinator.h"

#include <cstring>

#include "torchsnapshot/error.h"

namespace torchsnapshot {

std::vector<std::uint64_t> Coordinator::all_sum(const std::vector<std::uint64_t>& numbers) {
  const std::size_t size = numbers.size() * sizeof(std::uint64_t);
  std::string mine(size, '\0');
  std::memcpy(mine.data(), numbers.data(), size);
  std::vector<std::uint64_t> sums(numbers.size());
  std::vector<std::uint64_t> theirs(numbers.size());
  for (const std::string& bytes : all_gather(mine, size)) {
    if (bytes.size() != size) throw Error(ErrorCode::kInternal, "the ranks add up different numbers of numbers");
    std::memcpy(theirs.data(), bytes.data(), size);
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += theirs[i];
  }
  return sums;
}

void Coordinator::hand_round(std::span<const HandedPart> /*parts*/) {
  throw Error(ErrorCode::kUnsupported, "this coordinator can't hand bytes round");
}

std::vector<std::string> Coordinator::gather_within(const std::string& bytes, std::size_t limit) {
  if (bytes.size() > limit) throw Error(ErrorCode::kInternal, "a message is longer than its limit");
  return gather(bytes);
}

std::vector<std::string> Coordinator::gather_from(const std::vector<std::int64_t>& senders, const std::string& bytes) {
  bool is_sender = false;
  for (const std::int64_t sender : senders) is_sender = is_sender || sender == rank();
  std::vector<std::string> all = gather(is_sender ? bytes : std::string());
  std::vector<std::string> wanted;
  if (rank() != 0) return wanted;
  wanted.reserve(senders.size());
  for (const std::int64_t sender : senders) wanted.push_back(std::move(all.at(static_cast<std::size_t>(sender))));
  return wanted;
}

}  // namespace torchsnapshot
