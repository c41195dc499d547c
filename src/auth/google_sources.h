// Where tokens for Google Cloud Storage come from.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "auth/credentials.h"
#include "auth/environment.h"
#include "auth/token_request.h"

namespace torchsnapshot {

/// The token request of a service account: a JSON Web Token, signed with its key (RFC 7523).
std::string make_service_account_jwt(std::string_view email, std::string_view key_id, std::string_view private_key_pem,
                                     std::string_view audience, UtcSeconds now);

/// Credentials from, in this order:
///  1. the file `credentials_file`, when it is not ""
///  2. the file that GOOGLE_APPLICATION_CREDENTIALS names
///  3. application_default_credentials.json of gcloud (in CLOUDSDK_CONFIG or ~/.config/gcloud)
///  4. the metadata server (GCE_METADATA_HOST or metadata.google.internal)
/// A file is a service account's key, an authorized user's refresh token, or an identity known elsewhere
/// (google_federation.h). The choice is made by the first fetch.
std::unique_ptr<CredentialSource> google_credential_chain(std::string credentials_file, Environment environment,
                                                          std::string ca_bundle);

}  // namespace torchsnapshot
