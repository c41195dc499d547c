#include "snapshot/shared_reads.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <utility>

#include "exec/buffer_pool.h"
#include "exec/task_group.h"
#include "integrity/block_checksums.h"
#include "pipeline/lazy_copies.h"
#include "pipeline/options.h"
#include "pipeline/placing.h"
#include "plan/share_plan.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

constexpr std::size_t kPlacingThreads = 4;
static_assert(kParcelBytes <= kStagingBufferBytes);

/// What this rank would take from another one.
ReadWants wants_of(const ReadPlan& plan, const ReadContext& context) {
  ReadWants wants;
  for (const ObjectRead& object : plan.objects) {
    const ChecksumTable* table = table_of(context.checksums, object.location);
    const auto size = context.sizes.find(object.location);
    if (size == context.sizes.end() || (table != nullptr && table->block_bytes > kParcelBytes)) continue;
    std::vector<ByteRange> ranges;
    for (const TensorRead& read : object.tensors) {
      if (read.of_whole) ranges.push_back(read.range);
    }
    ObjectWants wanted{.location = object.location,
                       .object_bytes = size->second,
                       .block_bytes = table == nullptr ? 0 : table->block_bytes,
                       .ranges = joined(std::move(ranges))};
    if (!wanted.ranges.empty()) wants.push_back(std::move(wanted));
  }
  std::sort(wants.begin(), wants.end(),
            [](const ObjectWants& a, const ObjectWants& b) { return a.location < b.location; });
  return wants;
}

/// The reads of an object that have bytes of a range.
class ReadIndex {
 public:
  explicit ReadIndex(const ObjectRead& object) : object_(object) {
    std::uint64_t end = 0;
    for (const TensorRead& read : object.tensors) ends_.push_back(end = std::max(end, read.range.end));
  }
  template <typename Visit>
  void visit(ByteRange range, const Visit& visit) const {
    const auto first = std::upper_bound(ends_.begin(), ends_.end(), range.begin) - ends_.begin();
    for (auto i = static_cast<std::size_t>(first); i < object_.tensors.size(); ++i) {
      const TensorRead& read = object_.tensors[i];
      if (read.range.begin >= range.end) break;
      const ByteRange both{std::max(range.begin, read.range.begin), std::min(range.end, read.range.end)};
      if (both.begin < both.end) visit(read, both);
    }
  }

 private:
  const ObjectRead& object_;
  std::vector<std::uint64_t> ends_;  ///< the furthest end up to each read
};

/// A parcel in this rank's memory.
struct Held {
  struct Piece {
    ReadPiece piece;
    std::uint64_t at = 0;  ///< in the parcel
  };
  const Parcel* parcel = nullptr;
  std::span<std::byte> bytes;
  std::optional<BufferPool::Buffer> buffer;  ///< none: the bytes lie where they belong
  std::vector<Piece> pieces;
  std::future<void> task;  ///< that reads it, or places it
};

/// One run of rounds. What the tasks use outlives the threads.
class SharedRun {
 public:
  SharedRun(const ReadWants& common, std::vector<ObjectRead> objects, const ReadContext& context, ShareSession& session)
      : objects_(std::move(objects)),
        context_(context),
        session_(session),
        cuda_(objects_),
        rounds_(divide_reads(common, session.ranks().world_size(), session.round_bytes())),
        sources_(objects_.size()),
        forward_(context.options.stop, [this] { stop_.request_stop(); }),
        readers_(std::max<std::size_t>(1, context.options.io_concurrency)),
        placers_(kPlacingThreads) {
    if (cuda_.any()) budget_beside_ring(budget_or_default(context.options));
    for (const ObjectRead& object : objects_) indexes_.emplace_back(object);
    for (const ShareRound& round : rounds_) {
      for (const Parcel& parcel : round) {
        if (parcel.reader != session.ranks().rank()) continue;
        own_.push_back(&parcel);
        for (const SharePart& part : parcel.parts) ++sources_[part.object].parts_left;
      }
    }
  }
  SharedRun(const SharedRun&) = delete;
  SharedRun& operator=(const SharedRun&) = delete;
  ~SharedRun() { stop_.request_stop(); }

  std::vector<Corruption> run() {
    for (std::size_t i = 0; i < rounds_.size(); ++i) {
      current_ = collect(rounds_[i]);
      std::vector<HandedPart> parts;
      for (Held& held : current_) {
        if (held.task.valid()) wait(held.task);
        parts.push_back({held.parcel->reader, held.bytes});
      }
      std::vector<Corruption> found = found_so_far();
      session_.meet(i + 1 == rounds_.size(), found);
      session_.ranks().hand_round(parts);
      if (i + 1 == rounds_.size()) add(std::move(found));  // no sooner: the others hand round
      finish_placing();
      for (Held& held : current_) start_placing(held);
      placing_ = std::move(current_);
    }
    finish_placing();
    cuda_.finish();
    return std::move(found_);
  }

 private:
  /// An object that this rank reads from.
  struct Source {
    std::mutex mutex;
    std::unique_ptr<ObjectReader> reader;
    std::size_t parts_left = 0;
  };

  /// Memory for the parcels of a round. Those of this rank are being read, and some of later rounds.
  std::vector<Held> collect(const ShareRound& round) {
    std::vector<Held> held;
    held.reserve(round.size());
    for (const Parcel& parcel : round) {
      if (parcel.reader != session_.ranks().rank()) {
        held.push_back(make(parcel));
        continue;
      }
      while (ahead_.empty()) start_next();
      held.push_back(std::move(ahead_.front()));
      ahead_.pop_front();
      ahead_bytes_ -= parcel.bytes;
    }
    // Not bounded by buffers alone: what is far ahead may be in vain.
    while (next_ < own_.size() && ahead_bytes_ + own_[next_]->bytes <= session_.round_bytes()) start_next();
    return held;
  }

  void start_next() {
    const Parcel& parcel = *own_[next_++];
    Held held = make(parcel);
    held.task = submit(readers_, [this, &parcel, bytes = held.bytes] { read(parcel, bytes); });
    ahead_bytes_ += parcel.bytes;
    ahead_.push_back(std::move(held));
  }

  Held make(const Parcel& parcel) {
    Held held;
    held.parcel = &parcel;
    std::uint64_t at = 0;
    for (const SharePart& part : parcel.parts) {
      indexes_[part.object].visit(part.range, [&](const TensorRead& read, ByteRange range) {
        held.pieces.push_back({{.read = &read, .range = range}, at + range.begin - part.range.begin});
      });
      at += part.range.size();
    }
    if (held.pieces.size() == 1 && held.pieces.front().piece.range.size() == parcel.bytes) {
      const ReadPiece& piece = held.pieces.front().piece;
      if (std::byte* memory = plain_target(*piece.read)) {
        held.bytes = {memory + (piece.range.begin - piece.read->range.begin), parcel.bytes};
        finish_lazy_copies(held.bytes);  // the kernel writes there
        return held;
      }
    }
    held.buffer.emplace(staging_pool().acquire());
    held.bytes = held.buffer->span().first(parcel.bytes);
    return held;
  }

  /// On a thread of readers_.
  void read(const Parcel& parcel, std::span<std::byte> bytes) {
    std::uint64_t at = 0;
    for (const SharePart& part : parcel.parts) {
      const std::string& location = objects_[part.object].location;
      try {
        read(part, bytes.subspan(at, part.range.size()));
      } catch (const Error& error) {
        throw error.with_context("reading " + location + " for all ranks");
      }
      at += part.range.size();
    }
  }

  void read(const SharePart& part, std::span<std::byte> bytes) {
    const std::string& location = objects_[part.object].location;
    Source& source = sources_[part.object];
    ObjectReader* reader = nullptr;
    {
      const std::lock_guard lock(source.mutex);
      if (!source.reader) source.reader = context_.storage.open(location, stop_.get_token());
      reader = source.reader.get();
    }
    reader->read(part.range.begin, bytes);
    if (const ChecksumTable* table = table_of(context_.checksums, location)) {
      std::vector<Corruption> found;
      for (const BlockMismatch& mismatch : find_mismatches(*table, part.range.begin, bytes)) {
        found.push_back({{}, location, mismatch.range, mismatch.expected, mismatch.found});
      }
      add(std::move(found));
    }
    const std::lock_guard lock(source.mutex);
    if (--source.parts_left == 0) source.reader.reset();
  }

  void finish_placing() {
    for (Held& held : placing_) wait(held.task);
    placing_.clear();
  }

  void start_placing(Held& held) {
    // Its pieces and buffer stay where they are when it is moved.
    held.task = submit(
        placers_, [this, bytes = held.bytes, pieces = std::span(held.pieces), is_placed = !held.buffer.has_value()] {
          for (const Held::Piece& piece : pieces) {
            const std::uint64_t size = piece.piece.range.size();
            if (!is_placed) place(piece.piece, bytes.subspan(piece.at, size), stop_.get_token());
            context_.meter.add(size);
          }
        });
  }

  std::future<void> submit(ThreadPool& pool, std::function<void()> work) {
    auto task = std::make_shared<std::packaged_task<void()>>([this, work = std::move(work)] {
      if (stop_.stop_requested()) throw Error(ErrorCode::kCancelled, "cancelled");
      work();
    });
    pool.submit([task] { (*task)(); });
    return task->get_future();
  }

  void wait(std::future<void>& task) const {
    constexpr std::chrono::milliseconds kSlice(100);
    while (task.wait_for(kSlice) != std::future_status::ready) {
      if (context_.options.poll) context_.options.poll();
    }
    task.get();
  }

  [[nodiscard]] std::vector<Corruption> found_so_far() {
    const std::lock_guard lock(found_mutex_);
    return found_;
  }

  /// Findings of this rank or of others, with the entries that they concern here.
  void add(std::vector<Corruption> all) {
    for (Corruption& found : all) {
      for (std::size_t i = 0; i < objects_.size(); ++i) {
        if (objects_[i].location != found.location) continue;
        indexes_[i].visit(found.range,
                          [&](const TensorRead& read, ByteRange /*range*/) { found.paths.push_back(read.path); });
      }
      context_.corruptions.add(found);
      const std::lock_guard lock(found_mutex_);
      found_.push_back(std::move(found));
    }
  }

  const std::vector<ObjectRead> objects_;
  const ReadContext& context_;
  ShareSession& session_;
  CudaWrites cuda_;
  const std::vector<ShareRound> rounds_;
  std::vector<ReadIndex> indexes_;  ///< of the objects
  std::vector<Source> sources_;     ///< of the objects
  std::vector<const Parcel*> own_;  ///< what this rank reads, in order
  std::size_t next_ = 0;            ///< of own_, not begun
  std::deque<Held> ahead_;          ///< begun, not handed round
  std::uint64_t ahead_bytes_ = 0;
  std::vector<Held> current_;  ///< of the round under way
  std::vector<Held> placing_;  ///< of the one before
  std::mutex found_mutex_;
  std::vector<Corruption> found_;
  std::stop_source stop_;
  std::stop_callback<std::function<void()>> forward_;
  ThreadPool readers_;  ///< the last: their tasks use all others
  ThreadPool placers_;
};

}  // namespace

std::vector<Corruption> run_shared_reads(ReadPlan& plan, const ReadContext& context, ShareSession& session) {
  const ReadWants common = session.agree(wants_of(plan, context));
  if (common.empty()) return {};
  return SharedRun(common, take_shared(plan, common), context, session).run();
}

}  // namespace torchsnapshot
