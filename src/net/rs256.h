// RSA signatures with SHA-256, for the tokens of Google's service accounts.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace torchsnapshot {

/// The signature (PKCS #1 v1.5) of `message` with a private key in PEM. By the system's libcrypto, loaded when this is
/// first called: Error(kUnsupported) when there is none, Error(kInvalidArgument), without the key, when it is none.
std::vector<unsigned char> sign_rs256(std::string_view message, std::string_view private_key_pem);

}  // namespace torchsnapshot
