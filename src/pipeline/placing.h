// Bytes that were read, put where they belong.
#pragma once

#include <cstddef>
#include <span>
#include <stop_token>
#include <vector>

#include "plan/blocks.h"
#include "plan/read_plan.h"

namespace torchsnapshot {

/// Puts the bytes of a piece where they belong. Thread-safe for pieces that are not the same bytes.
void place(const ReadPiece& piece, std::span<const std::byte> bytes, const std::stop_token& stop);

/// Copies to CUDA devices, from the first to the last of a restore: after what the program has queued for its tensors,
/// and over on the host's side before it goes on, whatever becomes of the restore. So every stream sees them, what
/// fails is known, and memory that is freed next is not written to.
class CudaWrites {
 public:
  explicit CudaWrites(const std::vector<ObjectRead>& objects);
  CudaWrites(const CudaWrites&) = delete;
  CudaWrites& operator=(const CudaWrites&) = delete;
  ~CudaWrites();

  [[nodiscard]] bool any() const noexcept { return !streams_.empty(); }
  void finish();

 private:
  std::vector<DeviceStream> streams_;
};

}  // namespace torchsnapshot
