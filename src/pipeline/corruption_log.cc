#include "pipeline/corruption_log.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <tuple>
#include <utility>

#include "core/text.h"
#include "integrity/block_checksums.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {

std::string to_string(const Corruption& corruption) {
  constexpr std::size_t kShown = 3;
  std::string text;
  const std::size_t count = corruption.paths.size();
  if (count > 0) text += count == 1 ? "entry " : "entries ";
  for (std::size_t i = 0; i < std::min(count, kShown); ++i) {
    text += (i == 0 ? "'" : ", '") + corruption.paths[i] + "'";
  }
  if (count > kShown) text += " and " + std::to_string(count - kShown) + " more";
  if (count > 0) text += ": ";
  return text + "of object " + quote_text(corruption.location) + " " +
         to_string(BlockMismatch{corruption.range, corruption.expected, corruption.found});
}

void CorruptionLog::add(Corruption corruption) {
  if (!keep_going_) {
    throw Error(ErrorCode::kCorrupt,
                to_string(corruption) +
                    ": the data has changed since it was saved. Restore from another snapshot; `torchsnapshot verify` "
                    "lists all damage, and keep_going restores the rest");
  }
  const std::lock_guard lock(mutex_);
  found_.push_back(std::move(corruption));
}

std::vector<Corruption> CorruptionLog::take() {
  const std::lock_guard lock(mutex_);
  std::sort(found_.begin(), found_.end(), [](const Corruption& a, const Corruption& b) {
    return std::tie(a.location, a.range.begin) < std::tie(b.location, b.range.begin);
  });
  return std::move(found_);
}

}  // namespace torchsnapshot
