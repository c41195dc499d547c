// Google tokens for who is known elsewhere: workload identity federation, and service accounts that another identity
// may act as.
#pragma once

#include <stop_token>
#include <string>

#include "auth/credentials.h"
#include "auth/environment.h"
#include "auth/token_request.h"
#include "net/json.h"

namespace torchsnapshot {

/// The token in an answer of Google's OAuth or STS. `what`: who answered, for messages.
Credentials google_token_of(const JsonValue& answer, const std::string& what);

/// The token that a file of type "external_account" stands for:
///  1. The subject token, from the file or URL that its credential_source names (Kubernetes, GitHub, Azure…)
///  2. is exchanged for a token of Google's at its token_url (RFC 8693),
///  3. and that, where the file has a service_account_impersonation_url, for one of this service account.
/// `what`: the file, for messages. Throws Error(kUnsupported) for a credential_source that is a program or AWS.
Credentials exchange_external_account(const JsonValue& content, const std::string& what, const Environment& environment,
                                      TokenClient& client, const std::stop_token& stop);

/// A token of the service account whose generateAccessToken method `url` is, for who holds `bearer`. `delegates`: the
/// accounts in between, null or an array.
Credentials impersonate_service_account(const std::string& url, const std::string& bearer, const JsonValue* delegates,
                                        const std::string& what, TokenClient& client, const std::stop_token& stop);

}  // namespace torchsnapshot
