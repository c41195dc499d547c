#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "exec/buffer_pool.h"
#include "exec/memory_budget.h"
#include "exec/task_group.h"
#include "pipeline/pipeline.h"
#include "pipeline/progress.h"
#include "plan/blocks.h"
#include "tensor/device_copy.h"
#include "tensor/strided_copy.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

/// Gaps between reads up to this size are read along rather than sought over.
constexpr std::uint64_t kMaxGapBytes = 64ULL << 10;

[[noreturn]] void fail_size(const ObjectNeed& need, std::uint64_t actual) {
  std::string message = "entry '" + need.path + "': object '" + need.location + "' has " + std::to_string(actual) +
                        " bytes, but the manifest needs ";
  message += need.size ? "exactly " + std::to_string(*need.size)
                       : "its bytes [" + std::to_string(need.range.begin) + ", " + std::to_string(need.range.end) + ")";
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

/// Puts the bytes of a piece where they belong.
void place(const ReadPiece& piece, std::span<const std::byte> bytes) {
  const TensorRead& read = *piece.read;
  const std::uint64_t within_read = piece.range.begin - read.range.begin;
  if (read.view.device == DeviceType::kCpu) {
    scatter(bytes, read.piece_begin + within_read, read.piece_shape, read.region, read.view);
  } else {
    device_copier().to_device(bytes, within_read, read.view);
  }
}

/// An object being read; opened by the first of its tasks, closed with the last.
class ObjectInFlight {
 public:
  ObjectInFlight(const ObjectRead& object, Storage& storage, std::stop_token stop)
      : object_(object),
        storage_(storage),
        stop_(std::move(stop)),
        blocks_(read_blocks(object, kBlockBytes, kDirectBytes, kMaxGapBytes)) {}

  [[nodiscard]] const std::vector<ReadBlock>& blocks() const noexcept { return blocks_; }

  void read(const ReadBlock& block, MemoryBudget& budget, BufferPool& pool) {
    try {
      if (block.direct != nullptr) {
        reader().read(block.range.begin, {block.direct, block.range.size()});
        return;
      }
      const auto lease = budget.acquire(kBlockBytes, stop_);
      const auto buffer = pool.acquire();
      const auto bytes = buffer.span().first(block.range.size());
      reader().read(block.range.begin, bytes);
      for (const ReadPiece& piece : block.pieces) {
        place(piece, bytes.subspan(piece.range.begin - block.range.begin, piece.range.size()));
      }
    } catch (const Error& error) {
      throw error.with_context("reading '" + block.pieces.front().read->path + "'");
    }
  }

 private:
  ObjectReader& reader() {
    std::call_once(opened_, [this] { reader_ = storage_.open(object_.location, stop_); });
    return *reader_;
  }

  const ObjectRead& object_;
  Storage& storage_;
  std::stop_token stop_;
  std::vector<ReadBlock> blocks_;
  std::once_flag opened_;
  std::unique_ptr<ObjectReader> reader_;
};

SharedBytes read_blob(const BlobRead& blob, std::optional<std::uint64_t> size, Storage& storage, std::stop_token stop) {
  try {
    if (!blob.range && !size) {
      // The storage can't tell how long the object is.
      return SharedBytes::copy_of(storage.read_all(blob.location, UINT64_MAX, std::move(stop)));
    }
    const ByteRange range = blob.range ? *blob.range : ByteRange{0, *size};
    auto owned = std::make_shared<std::vector<std::byte>>(range.size());
    if (range.size() > 0) storage.open(blob.location, std::move(stop))->read(range.begin, *owned);
    return {*owned, owned};
  } catch (const Error& error) {
    throw error.with_context("reading '" + blob.path + "'");
  }
}

}  // namespace

std::map<std::string, std::uint64_t> check_objects(const std::vector<ObjectNeed>& needs, Storage& storage,
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
  std::map<std::string, std::uint64_t> known;
  for (std::size_t i = 0; i < needs.size(); ++i) {
    if (!sizes[i]) continue;
    if (*sizes[i] < needs[i].range.end || (needs[i].size && *sizes[i] != *needs[i].size))
      fail_size(needs[i], *sizes[i]);
    known.emplace(needs[i].location, *sizes[i]);
  }
  return known;
}

std::vector<SharedBytes> run_blob_reads(const std::vector<BlobRead>& blobs,
                                        const std::map<std::string, std::uint64_t>& sizes, Storage& storage,
                                        const IoOptions& options, ProgressMeter& meter) {
  std::vector<SharedBytes> results(blobs.size());
  ThreadPool threads(std::clamp<std::size_t>(blobs.size(), 1, std::max<std::size_t>(1, options.io_concurrency)));
  TaskGroup group(threads, options.stop);
  for (std::size_t i = 0; i < blobs.size(); ++i) {
    group.run([&, i] {
      const auto size = sizes.find(blobs[i].location);
      results[i] = read_blob(blobs[i], size == sizes.end() ? std::nullopt : std::optional(size->second), storage,
                             group.stop_token());
      meter.add(results[i].size());
    });
  }
  group.wait(options.poll);
  return results;
}

void run_reads(const ReadPlan& plan, Storage& storage, const IoOptions& options, ProgressMeter& meter) {
  MemoryBudget budget(budget_or_default(options));
  BufferPool pool(kBlockBytes);
  ThreadPool threads(std::max<std::size_t>(1, options.io_concurrency));
  TaskGroup group(threads, options.stop);
  for (const ObjectRead& object : plan.objects) {
    // The tasks own the object, so that its file is closed with its last block.
    const auto in_flight = std::make_shared<ObjectInFlight>(object, storage, group.stop_token());
    for (const ReadBlock& block : in_flight->blocks()) {
      group.run([in_flight, &block, &budget, &pool, &meter] {
        in_flight->read(block, budget, pool);
        for (const ReadPiece& piece : block.pieces) meter.add(piece.range.size());
      });
    }
  }
  group.wait(options.poll);
}

}  // namespace torchsnapshot
