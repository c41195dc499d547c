// The life of a block:
//  0. planned: start() is about to have its pages protected. A thread that writes already waits for 1.
//  1. held: its pages are protected (or the caller has promised not to write to them).
//  2. copying: claimed by one thread, which has memory for it already: the thread that runs ahead, a thread that is
//  about
//     to write (copy_now, copy_all), or a thread of the guard, for one that sleeps in its write.
//  3. over: copied, the protection lifted (which wakes who sleeps), the copy delivered. Or given up.
// The protection is lifted before the copy is delivered: nobody sleeps longer than the copy takes.

#include "pipeline/lazy_copies.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "exec/pending_list.h"
#include "plan/blocks.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::chrono::milliseconds kPatience(1000);

/// Does `one` for each of 0 to count - 1, on at most so many cores.
template <typename One>
void in_parallel(std::size_t count, std::size_t most, const One& one) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < count; i = next++) one(i);
  };
  std::vector<std::jthread> helpers;
  const std::size_t cores = std::min<std::size_t>(std::thread::hardware_concurrency(), most);
  while (helpers.size() + 1 < std::min(cores, count)) helpers.emplace_back(work);
  work();
}

/// All that are under way in this process.
PendingList<LazyCopies>& pending() {
  static auto* const all = new PendingList<LazyCopies>;
  return *all;
}

std::exception_ptr memory_is_gone() noexcept {
  return std::make_exception_ptr(
      Error(ErrorCode::kInvalidArgument,
            "the memory of a tensor was given back (storage.resize_, perhaps) while a lazy take still needed it; take "
            "the snapshot with eager staging"));
}

}  // namespace

/// A thread that uses the budget. close() waits for it, as the budget may be gone soon afterwards. False: it is closed.
class LazyCopies::User {
 public:
  explicit User(LazyCopies& copies) : copies_(copies) {
    const std::lock_guard lock(copies_.mutex_);
    is_let_in_ = !copies_.is_closed_;
    if (is_let_in_) ++copies_.users_;
  }
  ~User() {
    if (!is_let_in_) return;
    const std::lock_guard lock(copies_.mutex_);
    --copies_.users_;
    copies_.changed_.notify_all();
  }
  User(const User&) = delete;
  User& operator=(const User&) = delete;
  explicit operator bool() const noexcept { return is_let_in_; }

 private:
  LazyCopies& copies_;
  bool is_let_in_ = false;
};

std::shared_ptr<LazyCopies> LazyCopies::make(LazyPromise promise, const WriteGuard::Limits& limits,
                                             MemoryBudget& budget, std::stop_token stop, std::string& why_not) {
  std::shared_ptr<LazyCopies> copies(new LazyCopies(budget, std::move(stop)));
  if (promise == LazyPromise::kProtected) {
    WriteGuard::Attempt attempt = WriteGuard::make(
        limits, {.on_write = [raw = copies.get()](const std::byte* page) { raw->on_write(page); },
                 .on_lost = [raw = copies.get()](std::span<const std::byte> range) { raw->on_lost(range); }});
    if (!attempt.guard) {
      why_not = std::move(attempt.why_not);
      return nullptr;
    }
    copies->guard_ = std::move(attempt.guard);
  }
  pending().add(copies);
  return copies;
}

LazyCopies::~LazyCopies() {
  close();
}

std::vector<bool> LazyCopies::start(const std::vector<std::span<const std::byte>>& regions,
                                    const std::vector<LazyBlock>& blocks, Deliver deliver) {
  // What other takes hold of this memory has to be copied first: only one guard can have a page.
  for (const auto& copies : pending().all()) {
    if (copies.get() == this) continue;
    for (const auto& region : regions) copies->let_go(region);
  }
  std::vector<bool> is_held(regions.size(), false);
  std::vector<std::size_t> ascending(regions.size());
  std::iota(ascending.begin(), ascending.end(), 0U);
  std::sort(ascending.begin(), ascending.end(),
            [&](std::size_t a, std::size_t b) { return regions[a].data() < regions[b].data(); });
  const auto usable = guard_ ? private_memory() : std::vector<AddressRange>{};
  const std::byte* end = nullptr;
  std::vector<std::size_t> chosen;
  std::vector<bool> is_chosen(regions.size(), false);
  for (const std::size_t i : ascending) {
    const auto& region = regions[i];
    if (region.data() < end) continue;  // views of one storage
    if (guard_ && !is_within(region, usable)) continue;
    chosen.push_back(i);
    is_chosen[i] = true;
    end = region.data() + region.size();
  }
  plan(blocks, is_chosen);
  deliver_ = std::move(deliver);
  // Without the lock: while events of the guard are not taken, the kernel protects nothing, and who takes them needs
  // it.
  std::vector<char> done(chosen.size(), 0);
  constexpr std::size_t kMaxThreads = 8;  // they share one lock of the kernel
  in_parallel(chosen.size(), guard_ ? kMaxThreads : 1, [&](std::size_t i) {
    done[i] = !guard_ || guard_->protect(regions[chosen[i]]) ? 1 : 0;
    end_planning(regions[chosen[i]], done[i] != 0);
  });
  for (std::size_t i = 0; i < chosen.size(); ++i) is_held[chosen[i]] = done[i] != 0;
  return is_held;
}

void LazyCopies::plan(const std::vector<LazyBlock>& blocks, const std::vector<bool>& is_chosen) {
  const std::lock_guard lock(mutex_);
  std::size_t index = 0;
  for (const LazyBlock& block : blocks) {
    if (is_chosen[block.region]) blocks_.push_back({.memory = block.memory, .index = index});
    ++index;
  }
  by_address_.resize(blocks_.size());
  std::iota(by_address_.begin(), by_address_.end(), 0U);
  std::sort(by_address_.begin(), by_address_.end(),
            [this](std::size_t a, std::size_t b) { return blocks_[a].memory.data() < blocks_[b].memory.data(); });
}

/// The blocks of a region are held from now on, or the caller's.
void LazyCopies::end_planning(std::span<const std::byte> region, bool is_held) {
  const std::lock_guard lock(mutex_);
  for (const std::size_t block : blocks_in(region)) {
    if (blocks_[block].state != State::kPlanned) continue;  // lost already
    blocks_[block].state = is_held ? State::kHeld : State::kOver;
    if (is_held) ++held_;
  }
  changed_.notify_all();
}

void LazyCopies::run_ahead() {
  if (has_rest()) threads_.emplace_back([this] { try_copy_rest(); });
}

void LazyCopies::try_copy_rest() noexcept {
  try {
    copy_rest();
  } catch (...) {
    fail(std::current_exception());
  }
}

void LazyCopies::copy_rest() {
  const User user(*this);
  if (!user) return;
  while (has_rest()) {
    // First the memory, then the block: who waits for a copy must not wait for memory as well.
    MemoryBudget::Lease lease = budget_.acquire(kStagingBufferBytes, end_.get_token());
    BufferPool::Buffer buffer = staging_pool().acquire();
    std::size_t block = 0;
    if (!claim_next(block)) return;
    copy(block, std::move(lease), std::move(buffer));
  }
}

void LazyCopies::copy_all() {
  std::vector<std::jthread> helpers;
  // This thread and the one that runs ahead are there already.
  for (unsigned i = 2; i < std::thread::hardware_concurrency() && has_rest(); ++i) {
    helpers.emplace_back([this] { try_copy_rest(); });
  }
  try_copy_rest();
  helpers.clear();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return copying_ == 0; });
}

void LazyCopies::copy_now(std::span<const std::byte> memory) {
  std::vector<std::size_t> blocks;
  {
    const std::lock_guard lock(mutex_);
    blocks = blocks_in(memory);
  }
  for (const std::size_t block : blocks) copy_urgently(block);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    return std::none_of(blocks.begin(), blocks.end(),
                        [this](std::size_t block) { return blocks_[block].state == State::kCopying; });
  });
}

void LazyCopies::let_go(std::span<const std::byte> memory) {
  copy_now(memory);
  if (guard_) guard_->give_up(memory);
}

void LazyCopies::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, stop_, [this] { return (held_ == 0 && copying_ == 0) || error_ || is_closed_; });
  if (error_) std::rethrow_exception(error_);
}

void LazyCopies::close() noexcept {
  {
    std::unique_lock lock(mutex_);
    is_closed_ = true;
    changed_.notify_all();
    lock.unlock();
    end_.request_stop();
    lock.lock();
    changed_.wait(lock, [this] { return copying_ == 0 && users_ == 0; });
  }
  threads_.clear();
  if (guard_) guard_->stop();
  const std::lock_guard lock(mutex_);
  deliver_ = nullptr;
}

bool LazyCopies::has_rest() const {
  const std::lock_guard lock(mutex_);
  return held_ > 0 && !is_closed_ && !error_;
}

bool LazyCopies::claim(std::size_t block) {
  const std::lock_guard lock(mutex_);
  if (is_closed_ || blocks_[block].state != State::kHeld) return false;
  blocks_[block].state = State::kCopying;
  --held_;
  ++copying_;
  return true;
}

bool LazyCopies::claim_next(std::size_t& block) {
  std::size_t at = 0;
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      while (next_ < blocks_.size() && blocks_[next_].state != State::kHeld) ++next_;
      if (next_ == blocks_.size() || is_closed_) return false;
      at = next_;
    }
    if (claim(at)) {
      block = at;
      return true;
    }
  }
}

void LazyCopies::copy(std::size_t block, MemoryBudget::Lease lease, BufferPool::Buffer buffer) noexcept {
  const std::span<const std::byte> memory = blocks_[block].memory;
  std::memcpy(buffer.span().data(), memory.data(), memory.size());
  if (guard_ && guard_->is_lost(memory)) fail(memory_is_gone());
  release(memory);
  try {
    deliver_(blocks_[block].index, std::move(lease), std::move(buffer));
  } catch (...) {
    fail(std::current_exception());
  }
  // Under the lock: whoever sees that nothing is being copied may end all this.
  const std::lock_guard lock(mutex_);
  blocks_[block].state = State::kOver;
  --copying_;
  changed_.notify_all();
}

void LazyCopies::copy_urgently(std::size_t block) noexcept {
  const User user(*this);
  if (!user) return;
  {
    const std::lock_guard lock(mutex_);
    if (blocks_[block].state != State::kHeld) return;
  }
  try {
    MemoryBudget::Lease lease = budget_.acquire_within(kStagingBufferBytes, kPatience, end_.get_token());
    BufferPool::Buffer buffer = staging_pool().acquire();
    if (claim(block)) copy(block, std::move(lease), std::move(buffer));
  } catch (...) {
    // Its take was stopped, or there is no memory: then it fails, but nobody else does.
    fail(std::current_exception());
    if (!claim(block)) return;
    release(blocks_[block].memory);
    const std::lock_guard lock(mutex_);
    blocks_[block].state = State::kOver;
    --copying_;
    changed_.notify_all();
  }
}

void LazyCopies::on_write(const std::byte* page) noexcept {
  std::vector<std::size_t> found;
  {
    std::unique_lock lock(mutex_);
    found = blocks_in({page, 1});
    // Its region is protected, but start() has not said so yet: it will at once.
    changed_.wait(lock, [&] { return found.empty() || blocks_[found[0]].state != State::kPlanned || is_closed_; });
  }
  if (!found.empty()) copy_urgently(found[0]);
  // It may have been over when the message came, or be closed; while somebody copies, the end of that wakes them.
  {
    const std::lock_guard lock(mutex_);
    if (!found.empty() && blocks_[found[0]].state == State::kCopying) return;
  }
  release({page, kBlockAlignment});
}

void LazyCopies::on_lost(std::span<const std::byte> range) noexcept {
  // In one go: nobody may see that all is over and not see why.
  const std::lock_guard lock(mutex_);
  bool is_needed = false;
  for (const std::size_t block : blocks_in(range)) {
    State& state = blocks_[block].state;
    if (state != State::kHeld && state != State::kPlanned) continue;  // a copy that is being made sees it by itself
    is_needed = true;
    if (state == State::kHeld) --held_;
    state = State::kOver;
  }
  if (is_needed) fail_locked(memory_is_gone());
}

void LazyCopies::release(std::span<const std::byte> memory) noexcept {
  if (guard_) guard_->release(memory);
}

void LazyCopies::fail(std::exception_ptr error) noexcept {
  const std::lock_guard lock(mutex_);
  fail_locked(std::move(error));
}

void LazyCopies::fail_locked(std::exception_ptr error) noexcept {
  // What comes of a stop is no reason of its own.
  if (!error_ && !end_.stop_requested()) error_ = std::move(error);
  changed_.notify_all();
}

std::vector<std::size_t> LazyCopies::blocks_in(std::span<const std::byte> memory) const {
  std::vector<std::size_t> found;
  auto at = std::partition_point(by_address_.begin(), by_address_.end(), [&](std::size_t block) {
    return blocks_[block].memory.data() + blocks_[block].memory.size() <= memory.data();
  });
  for (; at != by_address_.end() && blocks_[*at].memory.data() < memory.data() + memory.size(); ++at) {
    found.push_back(*at);
  }
  return found;
}

void finish_lazy_copies(std::span<const std::byte> memory) {
  for (const auto& copies : pending().all()) copies->copy_now(memory);
}

std::vector<std::size_t> touch_order(const std::vector<TouchedBlock>& blocks) {
  struct Walk {
    std::uint64_t total = 0;
    std::uint64_t before = 0;
  };
  const auto key_of = [](std::string_view path) { return path.substr(0, path.find('/')); };
  std::unordered_map<std::string_view, Walk> keys;
  for (const TouchedBlock& block : blocks) keys[key_of(block.path)].total += block.bytes;
  std::vector<double> place(blocks.size());
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    Walk& key = keys[key_of(blocks[i].path)];
    place[i] = static_cast<double>(key.before) / static_cast<double>(std::max<std::uint64_t>(1, key.total));
    key.before += blocks[i].bytes;
  }
  std::vector<std::size_t> order(blocks.size());
  std::iota(order.begin(), order.end(), 0U);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return place[a] < place[b]; });
  return order;
}

}  // namespace torchsnapshot
