#include "pipeline/read_pipeline.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <span>
#include <utility>

#include "exec/buffer_pool.h"
#include "exec/memory_budget.h"
#include "exec/task_group.h"
#include "integrity/block_checksums.h"
#include "pipeline/lazy_copies.h"
#include "pipeline/options.h"
#include "pipeline/placing.h"
#include "plan/blocks.h"
#include "plan/ranges.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

/// What lies in memory already is looked for, and copied, in windows of this size.
constexpr std::size_t kViewBytes = 4 << 20;

[[noreturn]] void fail_size(const ObjectNeed& need, std::uint64_t actual, std::optional<std::uint64_t> written) {
  std::string message =
      "entry '" + need.path + "': object '" + need.location + "' has " + std::to_string(actual) + " bytes, but ";
  if (written) {
    message += std::to_string(*written) + " were written";
  } else if (need.size) {
    message += "the manifest needs exactly " + std::to_string(*need.size);
  } else {
    message += "the manifest needs its bytes [" + std::to_string(need.range.begin) + ", " +
               std::to_string(need.range.end) + ")";
  }
  message += need.dtype == DType::kBFloat16 && need.range.end == actual + 2
                 ? kOddBFloat16
                 : "; the snapshot is truncated or was changed after it was taken";
  throw Error(ErrorCode::kCorrupt, message);
}

[[noreturn]] void rethrow_naming_entry(const Error& error, const std::vector<ObjectNeed>& needs, Storage& storage,
                                       const std::stop_token& stop) {
  // The storage named an object; find whose it is.
  for (const ObjectNeed& need : needs) {
    try {
      storage.sizes(std::span(&need.location, 1), stop);
    } catch (const Error& of_one) {
      throw of_one.with_context("entry '" + need.path + "'");
    }
  }
  throw error;
}

std::uint64_t bytes_of(const ReadBlock& block) {
  std::uint64_t bytes = 0;
  for (const ReadPiece& piece : block.pieces) bytes += piece.range.size();
  return bytes;
}

/// An object being read; opened by the first of its tasks, closed with the last.
class ObjectInFlight {
 public:
  ObjectInFlight(const ObjectRead& object, const ReadContext& context, std::stop_token stop)
      : object_(object),
        context_(context),
        stop_(std::move(stop)),
        table_(table_of(context.checksums, object.location)) {
    if (table_ != nullptr) verifier_.emplace(*table_);
    blocks_ = read_blocks(object, object_bytes(), table_ == nullptr ? 0 : table_->block_bytes, kMaxGapBytes,
                          block_sizes(context.storage));
    remaining_ = blocks_.size();
  }

  [[nodiscard]] const std::vector<ReadBlock>& blocks() const noexcept { return blocks_; }

  void read(const ReadBlock& block, MemoryBudget& budget) {
    try {
      if (block.direct != nullptr) {
        const std::span bytes(block.direct, block.range.size());
        finish_lazy_copies(bytes);  // the kernel writes there
        fetch(block.range.begin, bytes);
        end_block();
        return;
      }
      const auto lease = budget.acquire(kStagingBufferBytes, stop_);
      const auto buffer = staging_pool().acquire();
      const auto bytes = buffer.span().first(block.range.size());
      fetch(block.range.begin, bytes);
      for (const ReadPiece& piece : block.pieces) {
        place(piece, bytes.subspan(piece.range.begin - block.range.begin, piece.range.size()), stop_);
      }
      end_block();
    } catch (const Error& error) {
      throw error.with_context(block.pieces.empty() ? "reading " + object_.location
                                                    : "reading '" + block.pieces.front().read->path + "'");
    }
  }

 private:
  /// Where the blocks end: the object's size, or what is needed of it when that is not known.
  [[nodiscard]] std::uint64_t object_bytes() const {
    if (table_ != nullptr) return table_->object_bytes;
    const auto size = context_.sizes.find(object_.location);
    if (size != context_.sizes.end()) return size->second;
    std::uint64_t end = 0;
    for (const TensorRead& read : object_.tensors) end = std::max(end, read.range.end);
    return end;
  }

  /// Brings bytes of the object to `out` and verifies them: in one pass what lies in memory already, window by window;
  /// what lies between by reading.
  void fetch(std::uint64_t offset, std::span<std::byte> out) {
    std::size_t done = 0;
    std::size_t size = 0;
    for (std::size_t at = 0; at < out.size(); at += size) {
      size = std::min(kViewBytes, out.size() - at);
      const auto view = reader().view(offset + at, size);
      if (!view) continue;
      read_through(offset + done, out.subspan(done, at - done));
      done = at + size;
      if (verifier_) {
        report(verifier_->add_copy(offset + at, out.subspan(at, size), view->span()));
      } else {
        std::memcpy(out.data() + at, view->span().data(), size);
      }
    }
    read_through(offset + done, out.subspan(done));
  }

  void read_through(std::uint64_t offset, std::span<std::byte> out) {
    if (out.empty()) return;
    if (!verifier_) {
      reader().read(offset, out);
      return;
    }
    reader().read_placing(
        offset, out, [this](std::uint64_t at, std::span<std::byte> dst, std::span<const std::byte> src) {
          report(dst.data() == src.data() ? verifier_->add(at, dst) : verifier_->add_copy(at, dst, src));
        });
  }

  void report(const std::vector<BlockMismatch>& mismatches) {
    for (const BlockMismatch& mismatch : mismatches) {
      std::vector<std::string> paths;
      for (const TensorRead& read : object_.tensors) {
        if (read.range.begin >= mismatch.range.end) break;
        if (read.range.end > mismatch.range.begin) paths.push_back(read.path);
      }
      is_corrupt_ = true;
      context_.corruptions.add({std::move(paths), object_.location, mismatch.range, mismatch.expected, mismatch.found});
    }
  }

  /// With the last block, every byte that was wanted must have been verified: a plan that leaves one out is a bug.
  void end_block() {
    if (remaining_.fetch_sub(1) != 1 || !verifier_ || is_corrupt_) return;
    for (const TensorRead& read : object_.tensors) {
      if (!verifier_->is_verified(read.range)) {
        throw Error(ErrorCode::kInternal,
                    "not all bytes of '" + read.path + "' in object '" + object_.location + "' were verified");
      }
    }
  }

  ObjectReader& reader() {
    const std::lock_guard lock(reader_mutex_);
    if (!reader_) reader_ = context_.storage.open(object_.location, stop_);
    return *reader_;
  }

  const ObjectRead& object_;
  const ReadContext& context_;
  std::stop_token stop_;
  const ChecksumTable* table_;
  std::optional<ChecksumVerifier> verifier_;
  std::vector<ReadBlock> blocks_;
  std::atomic<std::size_t> remaining_;
  std::atomic<bool> is_corrupt_ = false;
  std::mutex reader_mutex_;
  std::unique_ptr<ObjectReader> reader_;
};

std::optional<SharedBytes> read_blob(const BlobRead& blob, const ReadContext& context, std::stop_token stop) {
  const ChecksumTable* table = table_of(context.checksums, blob.location);
  const auto size = context.sizes.find(blob.location);
  if (!blob.range && size == context.sizes.end()) {
    // The storage can't tell how long the object is.
    return SharedBytes::copy_of(context.storage.read_all(blob.location, UINT64_MAX, std::move(stop)));
  }
  const ByteRange wanted = blob.range ? *blob.range : ByteRange{0, size->second};
  const ByteRange range = table == nullptr ? wanted : covering_blocks(*table, wanted);
  auto owned = std::make_shared<std::vector<std::byte>>(range.size());
  if (range.size() > 0) context.storage.open(blob.location, std::move(stop))->read(range.begin, *owned);
  bool intact = true;
  if (table != nullptr) {
    for (const BlockMismatch& mismatch : find_mismatches(*table, range.begin, *owned)) {
      context.corruptions.add({{blob.path}, blob.location, mismatch.range, mismatch.expected, mismatch.found});
      intact = false;
    }
  }
  if (!intact) return std::nullopt;
  return SharedBytes(std::span<const std::byte>(*owned).subspan(wanted.begin - range.begin, wanted.size()), owned);
}

}  // namespace

ObjectSizes check_objects(const std::vector<ObjectNeed>& needs, const ChecksumStore* checksums, Storage& storage,
                          const std::stop_token& stop) {
  std::vector<std::string> locations;
  locations.reserve(needs.size());
  for (const ObjectNeed& need : needs) locations.push_back(need.location);
  std::vector<std::optional<std::uint64_t>> sizes;
  try {
    sizes = storage.sizes(locations, stop);
  } catch (const Error& error) {
    rethrow_naming_entry(error, needs, storage, stop);
  }
  ObjectSizes known;
  for (std::size_t i = 0; i < needs.size(); ++i) {
    const ObjectNeed& need = needs[i];
    const ChecksumTable* table = table_of(checksums, need.location);
    std::optional<std::uint64_t> size = sizes[i];
    if (table != nullptr) {
      if (size && *size != table->object_bytes) fail_size(need, *size, table->object_bytes);
      size = table->object_bytes;
    }
    if (!size) continue;
    if (*size < need.range.end || (need.size && *size != *need.size)) fail_size(need, *size, std::nullopt);
    known.emplace(need.location, *size);
  }
  return known;
}

std::vector<std::optional<SharedBytes>> run_blob_reads(const std::vector<BlobRead>& blobs, const ReadContext& context) {
  std::vector<std::optional<SharedBytes>> results(blobs.size());
  const std::size_t most = std::max<std::size_t>(1, context.options.io_concurrency);
  ThreadPool threads(std::clamp<std::size_t>(blobs.size(), 1, most));
  TaskGroup group(threads, context.options.stop);
  for (std::size_t i = 0; i < blobs.size(); ++i) {
    group.run([&, i] {
      try {
        results[i] = read_blob(blobs[i], context, group.stop_token());
      } catch (const Error& error) {
        throw error.with_context("reading '" + blobs[i].path + "'");
      }
      if (results[i]) context.meter.add(results[i]->size());
    });
  }
  group.wait(context.options.poll);
  return results;
}

void run_reads(const ReadPlan& plan, const ReadContext& context) {
  CudaWrites cuda(plan.objects);
  const std::uint64_t limit = budget_or_default(context.options);
  MemoryBudget budget(cuda.any() ? budget_beside_ring(limit) : limit);
  ThreadPool threads(context.storage.limit_transfers(std::max<std::size_t>(1, context.options.io_concurrency)));
  TaskGroup group(threads, context.options.stop);
  for (const ObjectRead& object : plan.objects) {
    // The tasks own the object, so that its file is closed with its last block.
    const auto in_flight = std::make_shared<ObjectInFlight>(object, context, group.stop_token());
    for (const ReadBlock& block : in_flight->blocks()) {
      group.run([in_flight, &block, &budget, &context] {
        in_flight->read(block, budget);
        context.meter.add(bytes_of(block));
      });
    }
  }
  group.wait(context.options.poll);
  cuda.finish();
}

}  // namespace torchsnapshot
