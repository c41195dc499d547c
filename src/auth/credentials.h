// Credentials of an object store, and their keeper, which renews them in time.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>

#include "net/sigv4.h"
#include "net/time_text.h"

namespace torchsnapshot {

/// What a request is authorized with: an AWS key, a bearer token, or nothing (anonymous).
struct Credentials {
  std::optional<AwsKey> key;
  std::string bearer;
  std::optional<UtcSeconds> expires;  ///< nothing: they stay good
};

/// A place where credentials come from. Called by one thread at a time.
class CredentialSource {
 public:
  virtual ~CredentialSource() = default;
  CredentialSource() = default;
  CredentialSource(const CredentialSource&) = delete;
  CredentialSource& operator=(const CredentialSource&) = delete;

  /// For messages: "the environment", "profile 'x' in /home/u/.aws/credentials". No secret.
  [[nodiscard]] virtual std::string name() const = 0;
  /// New credentials. Throws Error(kPermissionDenied) that names the source and the remedy, without a secret.
  virtual Credentials fetch(const std::stop_token& stop) = 0;
};

/// Credentials that never change.
std::unique_ptr<CredentialSource> fixed_credentials(Credentials credentials, std::string name);

/// Keeps credentials and renews them: five minutes before they expire one thread does while the others go on with the
/// old ones; once they have expired everybody waits for that one. Thread-safe.
class CredentialKeeper {
 public:
  using Clock = std::function<UtcSeconds()>;
  explicit CredentialKeeper(std::unique_ptr<CredentialSource> source, Clock clock = utc_now);

  /// Throws what the source throws when there are none that are still good, Error(kCancelled) on a stop.
  std::shared_ptr<const Credentials> get(const std::stop_token& stop);
  /// The server has refused these as expired: the next get() brings others.
  void invalidate(const std::shared_ptr<const Credentials>& refused);
  [[nodiscard]] std::string source_name() const { return source_->name(); }

 private:
  const std::unique_ptr<CredentialSource> source_;
  const Clock clock_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::shared_ptr<const Credentials> current_;
  bool refreshing_ = false;
  std::optional<UtcSeconds> try_again_at_;  // after a refresh that failed while the old ones are good
};

}  // namespace torchsnapshot
