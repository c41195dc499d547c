#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <thread>
#include <utility>

#include "device/cuda_copies.h"
#include "exec/buffer_pool.h"
#include "snapshot/internal.h"
#include "snapshot/take_job.h"
#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {

namespace {

Staging staging_of(StagingMode mode) {
  switch (mode) {
    case StagingMode::kLazy:
      return Staging::kProtected;
    case StagingMode::kPromised:
      return Staging::kPromised;
    case StagingMode::kEager:
      break;
  }
  return Staging::kEverything;
}

}  // namespace

/// The take, and the thread that ends it.
class PendingSnapshot::Take {
 public:
  Take(std::shared_ptr<Storage> storage, const AppState& app, const TakeOptions& options)
      : url_(storage->url()),
        forward_(options.io.stop, [this] { stop_.request_stop(); }),
        notice_(options.io.on_notice),
        on_end_(options.on_end),
        is_told_(static_cast<bool>(options.on_end)) {
    TakeOptions own = options;
    own.io.stop = stop_.get_token();
    job_ = std::make_unique<TakeJob>(std::move(storage), app, own, staging_of(options.staging));
    job_->stage();
    lazy_copies_ = std::make_unique<std::shared_ptr<LazyCopies>>(job_->lazy_copies());
    device_staging_ = std::make_unique<std::shared_ptr<DeviceStaging>>(job_->device_staging());
    job_->stop_polling();
    thread_ = std::make_unique<std::thread>([this] { finish(); });
  }

  ~Take() {
    if (getpid() != owner_) {
      // A forked child has the object, but not the thread; what that held can't be touched.
      static_cast<void>(thread_.release());
      static_cast<void>(job_.release());
      static_cast<void>(lazy_copies_.release());
      static_cast<void>(device_staging_.release());
      return;
    }
    is_ending_ = true;
    if (thread_) thread_->join();
    if (error_ && !is_told_ && notice_) notice_("a pending take failed, and nobody waited for it: " + text_of(error_));
  }
  Take(const Take&) = delete;
  Take& operator=(const Take&) = delete;

  [[nodiscard]] const std::string& url() const noexcept { return url_; }

  [[nodiscard]] bool done() const {
    const std::lock_guard lock(mutex_);
    return done_;
  }

  [[nodiscard]] bool wait_for(std::chrono::milliseconds timeout) const {
    check_process();
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [this] { return done_; });
  }

  Snapshot wait() {
    check_process();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return done_; });
    is_told_ = true;
    if (error_) std::rethrow_exception(error_);
    return *snapshot_;
  }

  void wait_staged(std::span<const DeviceStream> streams) const {
    check_process();
    if (lazy_copies_ && *lazy_copies_) (*lazy_copies_)->copy_all();
    if (!device_staging_ || !*device_staging_) return;
    if (streams.empty()) {
      (*device_staging_)->wait_quietly();
    } else {
      (*device_staging_)->wait_queued();
      cuda_copies().order_before(streams);
    }
  }

  void cancel() { stop_.request_stop(); }

 private:
  void finish() noexcept {
    std::exception_ptr error;
    std::optional<Snapshot> snapshot;
    try {
      auto metadata = job_->finish();
      snapshot.emplace(job_->storage());
      snapshot->cache_->metadata = std::move(metadata);
    } catch (...) {
      error = std::current_exception();
    }
    job_.reset();
    if (on_end_) on_end_(error);
    on_end_ = nullptr;  // what it holds may hold this
    {
      const std::lock_guard lock(mutex_);
      snapshot_ = std::move(snapshot);
      error_ = std::move(error);
      done_ = true;
      changed_.notify_all();
    }
    // The next take finds all the memory that it needs warm: nobody waits for this.
    while (!is_ending_ && staging_pool().warm_one()) {
    }
  }

  void check_process() const {
    if (getpid() == owner_) return;
    throw Error(ErrorCode::kInvalidArgument, "the take to " + url_ + " is pending in the process " +
                                                 std::to_string(owner_) + ", not in its forked child " +
                                                 std::to_string(getpid()));
  }

  static std::string text_of(const std::exception_ptr& error) {
    try {
      std::rethrow_exception(error);
    } catch (const std::exception& exception) {
      return exception.what();
    } catch (...) {
      return "unknown error";
    }
  }

  const pid_t owner_ = getpid();
  const std::string url_;
  std::stop_source stop_;
  std::stop_callback<std::function<void()>> forward_;
  NoticeFn notice_;
  std::function<void(const std::exception_ptr&)> on_end_;
  std::unique_ptr<TakeJob> job_;
  std::unique_ptr<std::shared_ptr<LazyCopies>> lazy_copies_;  ///< not changed by finish()
  std::unique_ptr<std::shared_ptr<DeviceStaging>> device_staging_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool done_ = false;
  std::atomic<bool> is_ending_{false};
  bool is_told_;  ///< somebody has seen the error, or will
  std::optional<Snapshot> snapshot_;
  std::exception_ptr error_;
  std::unique_ptr<std::thread> thread_;  ///< the last: it uses all others
};

const std::string& PendingSnapshot::url() const noexcept {
  return take_->url();
}

bool PendingSnapshot::done() const {
  return take_->done();
}

bool PendingSnapshot::wait_for(std::chrono::milliseconds timeout) const {
  return take_->wait_for(timeout);
}

Snapshot PendingSnapshot::wait() const {
  return take_->wait();
}

void PendingSnapshot::wait_staged() const {
  take_->wait_staged({});
}

void PendingSnapshot::let_wait_staged(std::span<const DeviceStream> streams) const {
  take_->wait_staged(streams);
}

void PendingSnapshot::cancel() const {
  take_->cancel();
}

PendingSnapshot Snapshot::async_take(const std::string& url, const AppState& app, const TakeOptions& options,
                                     const StorageOptions& storage_options) {
  return async_take(open_storage(url, storage_options), app, options);
}

PendingSnapshot Snapshot::async_take(std::shared_ptr<Storage> storage, const AppState& app,
                                     const TakeOptions& options) {
  return PendingSnapshot(std::make_shared<PendingSnapshot::Take>(std::move(storage), app, options));
}

void release_staging_memory() {
  staging_pool().keep_at_most(kStagingKeep);
  release_pinned_memory();
}

}  // namespace torchsnapshot
