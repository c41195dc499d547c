// The exchanges, over keys below "torchsnapshot/ranks/GENERATION/". All go through rank 0, so that each rank has a
// constant number of requests. Exchange number N is:
//  1. (gather, all_gather) Every other rank sets N/RANK to its bytes.
//  2. Rank 0 waits for these keys, reads and removes them. Now every rank is in this exchange, so all have read what
//     rank 0 has told them in earlier ones: it removes that.
//  3. (broadcast, all_gather) Rank 0 sets N/all. The others wait for it, read it, and add 1 to `heard`.
//  A rank that fails, or has waited too long, sets `broken` to the reason if no rank has yet; those that wait look at
//  that key too, and add 1 to `seen`. After a failure the ranks may disagree about N: there are no more exchanges.
//  Values beyond kPieceBytes are cut: the head KEY, which begins with the size of the whole and is set last, then KEY+1
//  and so on.
// GENERATION counts the coordinators that a rank has made over this store; as all make them in the same order, it is
// the same on all ranks. Values are looked at again and again, with growing pauses; nobody blocks inside the store.

#include "libtorch/store_coordinator.h"

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <exception>
#include <string_view>
#include <thread>
#include <utility>

#include "torchsnapshot/error.h"
#include "torchsnapshot/torch.h"

namespace torchsnapshot::libtorch {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// The server of TCPStore refuses messages above 8 MiB.
constexpr std::size_t kPieceBytes = 4 << 20;
constexpr std::size_t kSizeBytes = 8;
constexpr std::size_t kNamedRanks = 8;
constexpr milliseconds kGrace(1000);
constexpr milliseconds kLinger(5000);
constexpr milliseconds kLingerAfterFailure(1000);  // whoever is dead will not come

/// The longest pause between two looks; with many ranks longer, so that the store can answer all.
milliseconds longest_pause(std::int64_t world_size) {
  return milliseconds(20 + world_size / 20);
}

std::string first_line(const char* text) {
  const std::string_view view = text;
  return std::string(view.substr(0, view.find('\n')));
}

template <typename Call>
auto on_store(const Call& call) {
  const auto fail = [](const char* text) {
    throw Error(ErrorCode::kIo, "the key-value store of the ranks failed (is its host gone?): " + first_line(text));
  };
  try {
    return call();
  } catch (const c10::Error& error) {
    fail(error.what_without_backtrace());
  } catch (const std::exception& error) {
    fail(error.what());
  }
  throw Error(ErrorCode::kInternal, "not reached");
}

/// Older versions of torch have no clone().
template <typename Store>
c10::intrusive_ptr<Store> connect_again(const c10::intrusive_ptr<Store>& store) {
  if constexpr (requires { store->clone(); }) {
    try {
      return store->clone();
    } catch (const c10::NotImplementedError&) {  // a store of the user's
      return store;
    }
  } else {
    return store;
  }
}

std::vector<std::uint8_t> to_store(std::string_view text) {
  return {text.begin(), text.end()};
}

std::string from_store(const std::vector<std::uint8_t>& bytes) {
  return {bytes.begin(), bytes.end()};
}

std::string encode_size(std::uint64_t size) {
  std::string bytes(kSizeBytes, '\0');
  for (char& byte : bytes) {
    byte = static_cast<char>(size & 255U);
    size >>= 8U;
  }
  return bytes;
}

std::uint64_t decode_size(std::string_view bytes) {
  if (bytes.size() < kSizeBytes) throw Error(ErrorCode::kCorrupt, "a message between the ranks is cut off");
  std::uint64_t size = 0;
  for (std::size_t i = kSizeBytes; i-- > 0;) size = size << 8U | static_cast<unsigned char>(bytes[i]);
  return size;
}

std::size_t pieces_of(std::uint64_t size) {
  return static_cast<std::size_t>((kSizeBytes + size + kPieceBytes - 1) / kPieceBytes);
}

std::string piece_key(const std::string& key, std::size_t piece) {
  return piece == 0 ? key : key + "+" + std::to_string(piece);
}

std::string join(const std::vector<std::string>& all) {
  std::string bytes;
  for (const std::string& one : all) bytes += encode_size(one.size()) + one;
  return bytes;
}

std::vector<std::string> split(std::string_view bytes) {
  std::vector<std::string> all;
  while (!bytes.empty()) {
    const std::uint64_t size = decode_size(bytes);
    bytes.remove_prefix(kSizeBytes);
    if (size > bytes.size()) throw Error(ErrorCode::kCorrupt, "a message between the ranks is cut off");
    all.emplace_back(bytes.substr(0, size));
    bytes.remove_prefix(size);
  }
  return all;
}

}  // namespace

C10dStore::C10dStore(c10::intrusive_ptr<c10d::Store> store)
    : store_(std::move(store)), connection_(on_store([this] { return connect_again(store_); })) {}

C10dStore::~C10dStore() = default;

void C10dStore::set(const std::string& key, const std::string& value) {
  on_store([&] { connection_->set(key, to_store(value)); });
}

std::optional<std::string> C10dStore::get(const std::string& key) {
  return on_store(
      [&] { return connection_->check({key}) ? std::optional(from_store(connection_->get(key))) : std::nullopt; });
}

std::int64_t C10dStore::add(const std::string& key, std::int64_t amount) {
  return on_store([&] { return connection_->add(key, amount); });
}

std::string C10dStore::set_once(const std::string& key, const std::string& value) {
  return on_store([&] { return from_store(connection_->compareSet(key, {}, to_store(value))); });
}

void C10dStore::remove(const std::string& key) {
  on_store([&] {
    try {
      connection_->deleteKey(key);
    } catch (const c10::NotImplementedError&) {  // a store that only grows
      return;
    }
  });
}

bool C10dStore::has(const std::vector<std::string>& keys) {
  return on_store([&] { return connection_->check(keys); });
}

milliseconds C10dStore::timeout() const {
  return store_->getTimeout();
}

StoreCoordinator::StoreCoordinator(std::unique_ptr<C10dStore> store, std::int64_t rank, std::int64_t world_size,
                                   milliseconds patience)
    : store_(std::move(store)), rank_(rank), world_size_(world_size), patience_(patience) {
  const std::string all = "torchsnapshot/ranks/";
  prefix_ = all + std::to_string(store_->add(all + "made/" + std::to_string(rank), 1)) + "/";
}

StoreCoordinator::~StoreCoordinator() {
  if (rank_ != 0) return;
  if (broken_.empty()) {
    linger("heard", told_count_ * (world_size_ - 1), kLinger);
  } else {
    linger("seen", world_size_, kLingerAfterFailure);
  }
}

void StoreCoordinator::linger(const char* counter, std::int64_t all, milliseconds limit) noexcept {
  try {
    const auto deadline = Clock::now() + limit;
    while (store_->add(prefix_ + counter, 0) < all && Clock::now() < deadline) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    for (const Told& told : told_) remove(told.key, told.pieces);
  } catch (...) {  // the store is gone, and with it all who might have waited
    return;
  }
}

template <typename Body>
auto StoreCoordinator::exchange(const Body& body) {
  if (!broken_.empty()) {
    throw Error(ErrorCode::kIo,
                "the ranks can't exchange anything any more: make a new coordinator on all of them; " + broken_);
  }
  ++number_;
  try {
    return body();
  } catch (const Error& error) {
    broken_ = error.what();
    try {
      broken_ = store_->set_once(prefix_ + "broken", broken_);
      store_->add(prefix_ + "seen", 1);
    } catch (const Error&) {  // the store itself: the others see that too
      throw error;
    }
    throw Error(error.code(), broken_);
  }
}

std::string StoreCoordinator::broadcast(const std::string& bytes) {
  if (world_size_ == 1) return bytes;
  return exchange([&] {
    if (rank_ != 0) return hear_all();
    tell_all(bytes);
    return bytes;
  });
}

std::vector<std::string> StoreCoordinator::all_gather(const std::string& bytes, std::size_t limit) {
  if (bytes.size() > limit) throw Error(ErrorCode::kInternal, "a message is longer than its limit");
  if (world_size_ == 1) return {bytes};
  return exchange([&] {
    if (rank_ != 0) {
      put(key(rank_), bytes);
      return split(hear_all());
    }
    std::vector<std::string> all = collect(bytes);
    tell_all(join(all));
    return all;
  });
}

std::vector<std::string> StoreCoordinator::gather(const std::string& bytes) {
  if (world_size_ == 1) return {bytes};
  return exchange([&] {
    if (rank_ == 0) return collect(bytes);
    put(key(rank_), bytes);
    return std::vector<std::string>();
  });
}

std::vector<std::string> StoreCoordinator::collect(const std::string& own) {
  std::vector<std::string> keys;
  for (std::int64_t rank = 1; rank < world_size_; ++rank) keys.push_back(key(rank));
  wait_for(keys);
  std::vector<std::string> all{own};
  for (const std::string& name : keys) all.push_back(take_out(name, true));
  for (const Told& told : told_) remove(told.key, told.pieces);
  told_.clear();
  return all;
}

void StoreCoordinator::tell_all(const std::string& bytes) {
  const std::string name = key("/all");
  put(name, bytes);
  told_.push_back({name, pieces_of(bytes.size())});
  ++told_count_;
}

std::string StoreCoordinator::hear_all() {
  wait_for({key("/all")});
  std::string bytes = take_out(key("/all"), false);
  store_->add(prefix_ + "heard", 1);
  return bytes;
}

void StoreCoordinator::put(const std::string& key, const std::string& bytes) {
  const std::string whole = encode_size(bytes.size()) + bytes;
  for (std::size_t piece = pieces_of(bytes.size()); piece-- > 0;) {
    store_->set(piece_key(key, piece), whole.substr(piece * kPieceBytes, kPieceBytes));
  }
}

std::string StoreCoordinator::take_out(const std::string& key, bool remove_it) {
  std::string whole;
  std::size_t pieces = 1;
  for (std::size_t piece = 0; piece < pieces; ++piece) {
    const std::optional<std::string> found = store_->get(piece_key(key, piece));
    if (!found) throw Error(ErrorCode::kIo, "a message between the ranks has gone from their store");
    if (piece == 0) pieces = pieces_of(decode_size(*found));
    whole += *found;
  }
  if (whole.size() != kSizeBytes + decode_size(whole)) {
    throw Error(ErrorCode::kCorrupt, "a message between the ranks is cut off");
  }
  if (remove_it) remove(key, pieces);
  return whole.substr(kSizeBytes);
}

void StoreCoordinator::remove(const std::string& key, std::size_t pieces) {
  for (std::size_t piece = 0; piece < pieces; ++piece) store_->remove(piece_key(key, piece));
}

void StoreCoordinator::wait_for(const std::vector<std::string>& keys) {
  // Rank 0 can say who is late; so the others let it speak first.
  const auto deadline = Clock::now() + patience_ + (rank_ == 0 ? milliseconds(0) : std::min(patience_, kGrace));
  const milliseconds longest = longest_pause(world_size_);
  milliseconds pause(1);
  while (!store_->has(keys)) {
    if (const auto broken = store_->get(prefix_ + "broken")) throw Error(ErrorCode::kIo, *broken);
    const auto now = Clock::now();
    if (now >= deadline) fail_late(keys);
    std::this_thread::sleep_for(std::min<Clock::duration>(pause, deadline - now));
    pause = std::min(pause * 2, longest);
  }
}

void StoreCoordinator::fail_late(const std::vector<std::string>& keys) {
  std::string late;
  std::size_t count = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (store_->has({keys[i]})) continue;
    if (++count <= kNamedRanks) late += (late.empty() ? "" : ", ") + std::to_string(rank_ == 0 ? i + 1 : 0);
  }
  if (count > kNamedRanks) late += " and " + std::to_string(count - kNamedRanks) + " more";
  throw Error(ErrorCode::kIo, "an exchange between the ranks failed: rank " + std::to_string(rank_) +
                                  " has heard nothing of rank" + (count == 1 ? " " : "s ") + late + " for " +
                                  std::to_string(patience_.count()) +
                                  " ms: dead, stuck, or slower than the timeout of the store allows");
}

std::shared_ptr<Coordinator> make_coordinator(c10::intrusive_ptr<c10d::Store> store, std::int64_t rank,
                                              std::int64_t world_size, std::optional<milliseconds> timeout) {
  if (!store.defined()) throw Error(ErrorCode::kInvalidArgument, "make_coordinator was given no store");
  if (world_size < 1 || rank < 0 || rank >= world_size) {
    throw Error(ErrorCode::kInvalidArgument,
                "there is no rank " + std::to_string(rank) + " in a world of " + std::to_string(world_size));
  }
  auto connection = std::make_unique<C10dStore>(std::move(store));
  const milliseconds patience = timeout.value_or(connection->timeout());
  if (patience <= milliseconds(0)) {
    throw Error(ErrorCode::kInvalidArgument, "the timeout of the ranks has to be more than 0 ms");
  }
  return std::make_shared<StoreCoordinator>(std::move(connection), rank, world_size, patience);
}

}  // namespace torchsnapshot::libtorch
