// The life of a multipart upload:
//  1. The first complete part starts it. Until then nothing is known to the store.
//  2. Every part goes out on the thread that completed it; write() returns when the store has it.
//  3. finish() names all parts to the store, which makes the object appear at once and whole, and only if there is none
//     of that name.
//  4. A writer that goes without finish() aborts the upload, so that its parts cost nothing. A crash leaves them
//     to prune (Storage::list_unfinished) and the bucket's lifecycle rules.
#include <algorithm>
#include <cstring>
#include <map>
#include <new>
#include <utility>

#include "storage/object_checks.h"
#include "storage/object_store.h"
#include "storage/part_grid.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

/// Memory of a part that comes in pieces.
struct PartBuffer {
  explicit PartBuffer(std::uint64_t bytes) : memory(new std::byte[bytes]), size(bytes) {}
  const std::unique_ptr<std::byte[]> memory;
  const std::uint64_t size;
  std::atomic<std::uint64_t> filled = 0;

  [[nodiscard]] std::span<const std::byte> content() const noexcept { return {memory.get(), size}; }
};

class PartWriter final : public ObjectWriter {
 public:
  PartWriter(std::shared_ptr<ObjectApi> api, std::shared_ptr<NamesInWork> names, std::uint64_t ticket, std::string key,
             std::string name, std::uint64_t size, std::stop_token stop)
      : api_(std::move(api)),
        names_(std::move(names)),
        ticket_(ticket),
        key_(std::move(key)),
        name_(std::move(name)),
        size_(size),
        grid_(size, api_->client().settings().part_bytes),
        progress_(size),
        stop_(std::move(stop)) {}

  ~PartWriter() override {
    if (upload_ && !finished_) api_->abort_upload(key_, *upload_);
    names_->give_back(key_, ticket_);
  }

  void write(std::uint64_t offset, std::span<const std::byte> data) override { write(offset, data, std::nullopt); }
  void write_summed(std::uint64_t offset, std::span<const std::byte> data, std::uint32_t crc32c) override {
    write(offset, data, crc32c);
  }

  void finish() override {
    progress_.check_complete(name_);
    check_stop(stop_, "finish", name_);
    if (grid_.count() > 1) {
      std::sort(parts_.begin(), parts_.end(), [](const auto& a, const auto& b) { return a.number < b.number; });
      api_->complete_upload(key_, *upload_, parts_, size_, stop_);
    } else {
      const std::shared_ptr<PartBuffer> buffer = buffer_of(0);
      api_->put(key_, buffer->content(), /*only_new=*/true, stop_);
      buffers_.clear();
    }
    finished_ = true;
  }

 private:
  /// `crc32c`: of `data`, if it is known.
  void write(std::uint64_t offset, std::span<const std::byte> data, std::optional<std::uint32_t> crc32c) {
    progress_.check_block(offset, data.size(), name_);
    check_stop(stop_, "write", name_);
    for (const PartPiece& piece : grid_.cut(offset, data.size())) {
      const auto bytes = data.subspan(piece.in_block, piece.size);
      if (piece.is_whole_part && grid_.count() > 1) {
        send(piece.part, bytes, bytes.size() == data.size() ? crc32c : std::nullopt);
        continue;
      }
      const std::shared_ptr<PartBuffer> buffer = buffer_of(piece.part);
      std::memcpy(buffer->memory.get() + piece.in_part, bytes.data(), bytes.size());
      const bool complete = buffer->filled.fetch_add(piece.size) + piece.size == buffer->size;
      if (complete && grid_.count() > 1) {
        send(piece.part, buffer->content(), std::nullopt);
        const std::lock_guard lock(mutex_);
        buffers_.erase(piece.part);
      }
    }
    progress_.add(data.size());
  }

  std::shared_ptr<PartBuffer> buffer_of(std::uint64_t part) {
    const std::lock_guard lock(mutex_);
    std::shared_ptr<PartBuffer>& buffer = buffers_[part];
    try {
      if (buffer == nullptr) buffer = std::make_shared<PartBuffer>(grid_.range(part).size());
    } catch (const std::bad_alloc&) {
      throw Error(ErrorCode::kNoSpace, "write " + name_ + ": no memory for a part");
    }
    return buffer;
  }

  void send(std::uint64_t part, std::span<const std::byte> content, std::optional<std::uint32_t> crc32c) {
    const UploadedPart sent = api_->put_part(key_, upload(), static_cast<int>(part) + 1, content, crc32c, stop_);
    const std::lock_guard lock(mutex_);
    parts_.push_back(sent);
  }

  const Upload& upload() {
    const std::lock_guard lock(start_mutex_);
    if (!upload_) upload_ = api_->start_upload(key_, size_, grid_.part_bytes(), stop_);
    return *upload_;
  }

  const std::shared_ptr<ObjectApi> api_;
  const std::shared_ptr<NamesInWork> names_;
  const std::uint64_t ticket_;
  const std::string key_;
  const std::string name_;
  const std::uint64_t size_;
  const PartGrid grid_;
  WriteProgress progress_;
  const std::stop_token stop_;
  std::mutex start_mutex_;
  std::optional<Upload> upload_;  // guarded by start_mutex_ until it is there
  std::mutex mutex_;
  std::map<std::uint64_t, std::shared_ptr<PartBuffer>> buffers_;  // guarded by mutex_
  std::vector<UploadedPart> parts_;                               // guarded by mutex_
  bool finished_ = false;
};

}  // namespace

std::unique_ptr<ObjectWriter> make_part_writer(std::shared_ptr<ObjectApi> api, std::shared_ptr<NamesInWork> names,
                                               std::uint64_t ticket, std::string key, std::string name,
                                               std::uint64_t size, std::stop_token stop) {
  return std::make_unique<PartWriter>(std::move(api), std::move(names), ticket, std::move(key), std::move(name), size,
                                      std::move(stop));
}

}  // namespace torchsnapshot
