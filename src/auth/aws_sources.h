// The places where AWS credentials come from, one class each (see aws_chain.h for their order).
#pragma once

#include <memory>
#include <string>

#include "auth/credentials.h"
#include "auth/environment.h"
#include "auth/token_request.h"

namespace torchsnapshot {

/// A command that prints credentials as JSON. It runs without a shell, for a minute at most.
std::unique_ptr<CredentialSource> process_credentials(std::string command, std::string name);

struct RoleSettings {
  std::string role_arn;
  std::string session_name = "torchsnapshot";
  std::string external_id{};
  std::string duration_seconds{};
  std::string sts_endpoint{};  ///< URL
  std::string region{};
};

/// STS AssumeRole, with the credentials of another source.
std::unique_ptr<CredentialSource> assume_role_credentials(RoleSettings role, std::unique_ptr<CredentialSource> base,
                                                          std::shared_ptr<TokenClient> client);
/// STS AssumeRoleWithWebIdentity, with the token in a file, which is read each time anew.
std::unique_ptr<CredentialSource> web_identity_credentials(RoleSettings role, std::string token_file,
                                                           std::shared_ptr<TokenClient> client);

struct SsoSettings {
  std::string start_url;
  std::string region;
  std::string account_id;
  std::string role_name;
  std::string cache_folder;  ///< where "aws sso login" leaves its token
  std::string endpoint;      ///< URL of the portal
};
std::unique_ptr<CredentialSource> sso_credentials(SsoSettings sso, std::shared_ptr<TokenClient> client);

/// The endpoint of a container (ECS, EKS pod identity): `url`, with the token of the variables in the request.
std::unique_ptr<CredentialSource> container_credentials(std::string url, Environment environment,
                                                        std::shared_ptr<TokenClient> client);
/// The metadata server of an EC2 instance, version 2.
std::unique_ptr<CredentialSource> instance_credentials(std::string endpoint, std::shared_ptr<TokenClient> client);

}  // namespace torchsnapshot
