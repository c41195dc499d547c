// Which of the sources of AWS credentials is used, and what else a profile says.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "auth/credentials.h"
#include "auth/environment.h"
#include "auth/token_request.h"

namespace torchsnapshot {

using AwsProfile = std::map<std::string, std::string>;

/// The profiles of ~/.aws/config and ~/.aws/credentials (or where AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE say),
/// by name; the second file's values go before the first's. "sso-session NAME" is a section of that name.
std::map<std::string, AwsProfile> load_aws_profiles(const Environment& environment);

/// Credentials from, in this order:
///  1. the profile `profile`, when it is not "": nothing else is looked at then
///  2. AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
///  3. the profile AWS_PROFILE (or "default"): an assumed role, keys, SSO, credential_process
///  4. AWS_WEB_IDENTITY_TOKEN_FILE with AWS_ROLE_ARN
///  5. AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or …_FULL_URI
///  6. the instance's metadata server, unless AWS_EC2_METADATA_DISABLED is true
/// The choice is made by the first fetch.
std::unique_ptr<CredentialSource> aws_credential_chain(std::string profile, std::string region, Environment environment,
                                                       std::string ca_bundle);

}  // namespace torchsnapshot
