// From storage options and the environment to the settings of an object store. Reads files, sends nothing.
#pragma once

#include <memory>
#include <string>

#include "auth/credentials.h"
#include "auth/environment.h"
#include "cloud/settings.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

struct StoreConfig {
  StoreSettings settings;
  std::unique_ptr<CredentialSource> credentials;  ///< null: anonymous
};

/// `given`: the storage options. Throw Error(kInvalidArgument) for an unknown option (listing the known ones), a
/// malformed value (of a secret it is not shown), and options that contradict each other.
StoreConfig configure_s3(const std::string& bucket_and_prefix, const StorageOptions& given,
                         CredentialsCallback callback, const Environment& environment);
StoreConfig configure_gcs(const std::string& bucket_and_prefix, const StorageOptions& given,
                          CredentialsCallback callback, const Environment& environment);

}  // namespace torchsnapshot
