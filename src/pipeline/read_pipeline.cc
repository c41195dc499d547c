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

[[noreturn]] void fail_size(const std::string& path, const std::string& location, std::uint64_t actual,
                            const std::string& expected) {
  throw Error(ErrorCode::kCorrupt, "entry '" + path + "': object '" + location + "' has " + std::to_string(actual) +
                                       " bytes, but the manifest needs " + expected +
                                       "; the snapshot is truncated or was changed after it was taken");
}

/// Nothing is written to a target before every object is known to be as long as the manifest says.
/// Returns the sizes of the blobs' objects, where the storage can tell.
std::vector<std::optional<std::uint64_t>> check_sizes(const ReadPlan& plan, const std::vector<BlobRead>& blobs,
                                                      Storage& storage, const std::stop_token& stop) {
  std::vector<std::string> locations;
  locations.reserve(plan.objects.size() + blobs.size());
  for (const ObjectRead& object : plan.objects) locations.push_back(object.location);
  for (const BlobRead& blob : blobs) locations.push_back(blob.location);
  std::vector<std::optional<std::uint64_t>> sizes = storage.sizes(locations, stop);

  for (std::size_t i = 0; i < plan.objects.size(); ++i) {
    const ObjectRead& object = plan.objects[i];
    if (!sizes[i]) continue;
    if (*sizes[i] < object.min_size) {
      // Name the entry that suffers, not just any entry of the object.
      const auto hit = std::find_if(object.tensors.begin(), object.tensors.end(),
                                    [&](const TensorRead& read) { return read.range.end > *sizes[i]; });
      const TensorRead& named = hit == object.tensors.end() ? object.tensors.back() : *hit;
      fail_size(named.path, object.location, *sizes[i],
                "its bytes [" + std::to_string(named.range.begin) + ", " + std::to_string(named.range.end) + ")");
    }
    if (object.exact_size && *sizes[i] != *object.exact_size) {
      fail_size(object.tensors.front().path, object.location, *sizes[i],
                "exactly " + std::to_string(*object.exact_size));
    }
  }
  sizes.erase(sizes.begin(), sizes.begin() + static_cast<std::ptrdiff_t>(plan.objects.size()));
  for (std::size_t i = 0; i < blobs.size(); ++i) {
    const BlobRead& blob = blobs[i];
    if (sizes[i] && blob.range && *sizes[i] < blob.range->end) {
      fail_size(blob.path, blob.location, *sizes[i],
                "its bytes [" + std::to_string(blob.range->begin) + ", " + std::to_string(blob.range->end) + ")");
    }
  }
  return sizes;
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

std::vector<SharedBytes> run_reads(const ReadPlan& plan, const std::vector<BlobRead>& blobs, Storage& storage,
                                   const IoOptions& options) {
  const auto blob_sizes = check_sizes(plan, blobs, storage, options.stop);
  std::vector<SharedBytes> results(blobs.size());
  std::uint64_t total = 0;
  for (const ObjectRead& object : plan.objects) {
    for (const TensorRead& read : object.tensors) total += read.range.size();
  }
  for (std::size_t i = 0; i < blobs.size(); ++i) {
    total += blobs[i].range ? blobs[i].range->size() : blob_sizes[i].value_or(0);
  }

  ProgressMeter meter(total, options.on_progress);
  MemoryBudget budget(budget_or_default(options));
  BufferPool pool(kBlockBytes);
  ThreadPool threads(std::max<std::size_t>(1, options.io_concurrency));
  TaskGroup group(threads, options.stop);

  for (std::size_t i = 0; i < blobs.size(); ++i) {
    group.run([&, i] {
      results[i] = read_blob(blobs[i], blob_sizes[i], storage, group.stop_token());
      meter.add(results[i].size());
    });
  }
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
  group.wait();
  meter.finish();
  return results;
}

}  // namespace torchsnapshot
