#include "device/pinned_ring.h"

#include <algorithm>

#include "torchsnapshot/error.h"

namespace torchsnapshot {

PinnedRing::~PinnedRing() {
  for (const Busy& busy : busy_) {
    if (settle(busy.events)) free_.push_back(busy.memory);
  }
  for (const Memory& memory : free_) memory.device->host_free(memory.data);
  // What is lost stays: memory that a copy may write to later must not be somebody else's.
}

PinnedRing::Chunk::~Chunk() {
  if (ring_ != nullptr) ring_->give_back(memory_);
}

std::optional<PinnedRing::Memory> PinnedRing::take_or_reserve() {
  if (!free_.empty()) {
    const Memory memory = free_.back();
    free_.pop_back();
    return memory;
  }
  if (count_ >= limit_) return std::nullopt;
  free_.reserve(count_ + 1);  // so that give_back can't fail
  ++count_;
  return Memory{};
}

std::optional<PinnedRing::Chunk> PinnedRing::try_acquire(const CudaDevice& device) {
  std::optional<Memory> memory;
  {
    const std::lock_guard lock(mutex_);
    memory = take_or_reserve();
  }
  if (!memory) return std::nullopt;
  return memory->data == nullptr ? make(device) : Chunk(this, *memory);
}

PinnedRing::Chunk PinnedRing::acquire(const CudaDevice& device, const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (true) {
    if (stop.stop_requested()) throw Error(ErrorCode::kCancelled, "waiting for pinned memory was cancelled");
    if (const auto memory = take_or_reserve()) {
      lock.unlock();
      return memory->data == nullptr ? make(device) : Chunk(this, *memory);
    }
    if (!busy_.empty()) {
      Busy oldest = std::move(busy_.front());
      busy_.pop_front();
      lock.unlock();
      return wait_for(oldest);
    }
    changed_.wait(lock, stop, [this] { return !free_.empty() || count_ < limit_ || !busy_.empty(); });
  }
}

PinnedRing::Chunk PinnedRing::make(const CudaDevice& device) {
  try {
    return {this, {static_cast<std::byte*>(device.host_alloc(chunk_bytes_)), &device}};
  } catch (...) {
    const std::lock_guard lock(mutex_);
    forget_one();
    throw;
  }
}

PinnedRing::Chunk PinnedRing::wait_for(const Busy& busy) {
  Chunk chunk(this, busy.memory);
  try {
    for (const CudaEvent& event : busy.events) event.wait();
  } catch (...) {
    if (!settle(busy.events)) lose(std::move(chunk));
    throw;
  }
  return chunk;
}

void PinnedRing::give_back_after(Chunk chunk, std::vector<CudaEvent> events) {
  const std::lock_guard lock(mutex_);
  busy_.push_back({chunk.memory_, std::move(events)});
  chunk.ring_ = nullptr;
  changed_.notify_all();
}

void PinnedRing::lose(Chunk chunk) {
  const std::lock_guard lock(mutex_);
  lost_.push_back(chunk.memory_);
  chunk.ring_ = nullptr;
  forget_one();
}

void PinnedRing::find_lost() {
  const std::lock_guard lock(mutex_);
  count_ += lost_.size();
  free_.insert(free_.end(), lost_.begin(), lost_.end());
  lost_.clear();
}

void PinnedRing::forget_one() noexcept {
  --count_;
  changed_.notify_all();
}

void PinnedRing::give_back(const Memory& memory) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (count_ <= limit_) {
      free_.push_back(memory);
      changed_.notify_all();
      return;
    }
    forget_one();
  }
  memory.device->host_free(memory.data);
}

void PinnedRing::set_limit(std::size_t chunks) {
  const std::lock_guard lock(mutex_);
  limit_ = std::max<std::size_t>(1, chunks);
  for (; count_ > limit_ && !free_.empty(); free_.pop_back()) {
    free_.back().device->host_free(free_.back().data);
    forget_one();
  }
  changed_.notify_all();
}

void PinnedRing::trim() {
  const std::lock_guard lock(mutex_);
  for (; !free_.empty(); free_.pop_back()) {
    free_.back().device->host_free(free_.back().data);
    forget_one();
  }
}

bool settle(const std::vector<CudaEvent>& events) noexcept {
  bool all = true;
  for (const CudaEvent& event : events) {
    try {
      event.wait();
    } catch (...) {
      all = event.device().settle() && all;
    }
  }
  return all;
}

}  // namespace torchsnapshot
