// What verification found.
#pragma once

#include <mutex>
#include <vector>

#include "torchsnapshot/corruption.h"

namespace torchsnapshot {

/// Takes findings, or ends the operation at the first. Thread-safe.
class CorruptionLog {
 public:
  explicit CorruptionLog(bool keep_going) : keep_going_(keep_going) {}

  /// Throws Error(kCorrupt) unless it is to keep going.
  void add(Corruption corruption);
  /// All findings, by location and range.
  std::vector<Corruption> take();

 private:
  const bool keep_going_;
  std::mutex mutex_;
  std::vector<Corruption> found_;
};

}  // namespace torchsnapshot
