#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <variant>
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

/// Copies a piece's bytes to `out`.
void stage(const WritePiece& piece, std::span<std::byte> out) {
  if (const auto* bytes = std::get_if<SharedBytes>(&piece.item->source)) {
    std::memcpy(out.data(), bytes->span().data() + piece.begin, out.size());
    return;
  }
  const auto& view = std::get<TensorView>(piece.item->source);
  if (view.device == DeviceType::kCpu) {
    gather(view, piece.begin, out);
  } else {
    device_copier().to_host(view, piece.begin, out);
  }
}

/// An object on its way to storage; shared by the tasks of its blocks. The last one finishes it.
class ObjectInFlight {
 public:
  ObjectInFlight(const WriteObject& object, Storage& storage, std::stop_token stop)
      : object_(object),
        storage_(storage),
        stop_(std::move(stop)),
        blocks_(write_blocks(object, kBlockBytes, kDirectBytes)),
        remaining_(blocks_.size()) {}

  [[nodiscard]] const std::vector<WriteBlock>& blocks() const noexcept { return blocks_; }

  void write(const WriteBlock& block, MemoryBudget& budget, BufferPool& pool) {
    try {
      if (block.direct != nullptr) {
        writer().write(block.range.begin, {block.direct, block.range.size()});
      } else {
        const auto lease = budget.acquire(kBlockBytes, stop_);
        const auto buffer = pool.acquire();
        writer().write(block.range.begin, fill(block, buffer.span()));
      }
      if (remaining_.fetch_sub(1) == 1) writer().finish();
    } catch (const Error& error) {
      throw error.with_context(block.pieces.empty() ? "writing " + object_.location
                                                    : "writing '" + block.pieces.front().item->path + "'");
    }
  }

  /// For an object without bytes.
  void write_empty() {
    try {
      writer().finish();
    } catch (const Error& error) {
      throw error.with_context("writing " + object_.location);
    }
  }

 private:
  static std::span<const std::byte> fill(const WriteBlock& block, std::span<std::byte> buffer) {
    std::uint64_t at = 0;
    const auto zero_until = [&](std::uint64_t end) {
      std::fill(buffer.begin() + static_cast<std::ptrdiff_t>(at), buffer.begin() + static_cast<std::ptrdiff_t>(end),
                std::byte{0});
    };
    for (const WritePiece& piece : block.pieces) {
      const std::uint64_t begin = piece.offset - block.range.begin;
      zero_until(begin);
      stage(piece, buffer.subspan(begin, piece.size));
      at = begin + piece.size;
    }
    zero_until(block.range.size());
    return buffer.first(block.range.size());
  }

  ObjectWriter& writer() {
    std::call_once(created_, [this] { writer_ = storage_.create(object_.location, object_.size, stop_); });
    return *writer_;
  }

  const WriteObject& object_;
  Storage& storage_;
  std::stop_token stop_;
  std::vector<WriteBlock> blocks_;
  std::atomic<std::size_t> remaining_;
  std::once_flag created_;
  std::unique_ptr<ObjectWriter> writer_;
};

}  // namespace

void run_writes(const WritePlan& plan, Storage& storage, const IoOptions& options) {
  std::uint64_t total = 0;
  for (const WriteObject& object : plan.objects) total += object.size;
  ProgressMeter meter(total, options.on_progress);
  MemoryBudget budget(budget_or_default(options));
  BufferPool pool(kBlockBytes);
  ThreadPool threads(std::max<std::size_t>(1, options.io_concurrency));
  TaskGroup group(threads, options.stop);

  for (const WriteObject& object : plan.objects) {
    auto in_flight = std::make_shared<ObjectInFlight>(object, storage, group.stop_token());
    if (in_flight->blocks().empty()) {
      group.run([in_flight] { in_flight->write_empty(); });
      continue;
    }
    for (const WriteBlock& block : in_flight->blocks()) {
      group.run([in_flight, &block, &budget, &pool, &meter] {
        in_flight->write(block, budget, pool);
        meter.add(block.range.size());
      });
    }
  }
  group.wait(options.poll);
  meter.finish();
}

}  // namespace torchsnapshot
