#include "auth/credentials.h"

#include <utility>

#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

using std::chrono::seconds;

constexpr seconds kRenewBefore{300};
constexpr seconds kPauseAfterFailure{30};
constexpr seconds kNoMoreUseBefore{15};  // a request may take a while to arrive

class FixedCredentials final : public CredentialSource {
 public:
  FixedCredentials(Credentials credentials, std::string name)
      : credentials_(std::move(credentials)), name_(std::move(name)) {}
  [[nodiscard]] std::string name() const override { return name_; }
  Credentials fetch(const std::stop_token&) override { return credentials_; }

 private:
  const Credentials credentials_;
  const std::string name_;
};

}  // namespace

std::unique_ptr<CredentialSource> fixed_credentials(Credentials credentials, std::string name) {
  return std::make_unique<FixedCredentials>(std::move(credentials), std::move(name));
}

CredentialKeeper::CredentialKeeper(std::unique_ptr<CredentialSource> source, Clock clock)
    : source_(std::move(source)), clock_(std::move(clock)) {}

std::shared_ptr<const Credentials> CredentialKeeper::get(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  for (;;) {
    const UtcSeconds now = clock_();
    const bool is_good = current_ != nullptr && (!current_->expires || *current_->expires - now > kNoMoreUseBefore);
    const bool is_due = current_ == nullptr || (current_->expires && *current_->expires - now <= kRenewBefore);
    if (is_good && (!is_due || refreshing_ || (try_again_at_ && now < *try_again_at_))) return current_;
    if (!refreshing_) break;
    if (!changed_.wait(lock, stop, [this] { return !refreshing_; })) {
      throw Error(ErrorCode::kCancelled, "waiting for credentials was cancelled");
    }
  }
  refreshing_ = true;
  const std::shared_ptr<const Credentials> old = current_;
  lock.unlock();
  std::shared_ptr<const Credentials> fresh;
  std::exception_ptr failure;
  try {
    fresh = std::make_shared<const Credentials>(source_->fetch(stop));
  } catch (...) {
    failure = std::current_exception();
  }
  lock.lock();
  refreshing_ = false;
  changed_.notify_all();
  if (fresh != nullptr) {
    try_again_at_.reset();
    return current_ = fresh;
  }
  const UtcSeconds now = clock_();
  if (current_ != nullptr && current_ == old && current_->expires && *current_->expires - now > kNoMoreUseBefore) {
    try_again_at_ = now + kPauseAfterFailure;
    return current_;
  }
  std::rethrow_exception(failure);
}

void CredentialKeeper::invalidate(const std::shared_ptr<const Credentials>& refused) {
  const std::lock_guard lock(mutex_);
  if (current_ == refused) current_.reset();
}

}  // namespace torchsnapshot
