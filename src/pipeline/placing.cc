#include "pipeline/placing.h"

#include <cstdint>
#include <utility>

#include "device/cuda_copies.h"
#include "pipeline/device_staging.h"
#include "tensor/device_copy.h"
#include "tensor/strided_copy.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {

void place(const ReadPiece& piece, std::span<const std::byte> bytes, const std::stop_token& stop) {
  const TensorRead& read = *piece.read;
  const std::uint64_t within_read = piece.range.begin - read.range.begin;
  if (read.view.device == DeviceType::kCpu) {
    scatter(bytes, read.piece_begin + within_read, read.piece_shape, read.region, read.view);
  } else if (read.view.device == DeviceType::kCuda) {
    cuda_copies().to_device(bytes, within_read, read.view, stop);
  } else {
    device_copier().to_device(bytes, within_read, read.view);
  }
}

CudaWrites::CudaWrites(const std::vector<ObjectRead>& objects) {
  for (const ObjectRead& object : objects) {
    for (const TensorRead& read : object.tensors) {
      if (read.view.device == DeviceType::kCuda) streams_.push_back(read.view.stream);
    }
  }
  if (streams_.empty()) return;
  finish_device_staging();
  cuda_copies().order_after(streams_);
}

CudaWrites::~CudaWrites() {
  try {
    finish();
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): there is another error already
  }
}

void CudaWrites::finish() {
  if (!streams_.empty()) cuda_copies().wait_to_device(std::exchange(streams_, {}));
}

}  // namespace torchsnapshot
