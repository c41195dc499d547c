#include "net/rs256.h"

#include <cstddef>
#include <string>

#include "core/dynamic_library.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

/// The functions of libcrypto that are used; the same in 1.1.1 and 3.
struct Crypto {
  void* (*bio_new)(const void* data, int size);
  int (*bio_free)(void* bio);
  void* (*read_key)(void* bio, void** key, int (*password)(char*, int, int, void*), void* user);
  void (*key_free)(void* key);
  void* (*context_new)();
  void (*context_free)(void* context);
  const void* (*sha256)();
  int (*sign_init)(void* context, void** key_context, const void* digest, void* engine, void* key);
  int (*sign)(void* context, unsigned char* signature, std::size_t* size, const unsigned char* data, std::size_t count);
  void (*clear_errors)();
};

const Crypto& crypto() {
  static const Crypto loaded = [] {
    const std::vector<std::string> names = {"libcrypto.so.3", "libcrypto.so.1.1"};
    const DynamicLibrary library(
        names, "credentials of a Google service account need OpenSSL at run time: apt-get install libssl3");
    Crypto functions{};
    library.find("BIO_new_mem_buf", functions.bio_new);
    library.find("BIO_free", functions.bio_free);
    library.find("PEM_read_bio_PrivateKey", functions.read_key);
    library.find("EVP_PKEY_free", functions.key_free);
    library.find("EVP_MD_CTX_new", functions.context_new);
    library.find("EVP_MD_CTX_free", functions.context_free);
    library.find("EVP_sha256", functions.sha256);
    library.find("EVP_DigestSignInit", functions.sign_init);
    library.find("EVP_DigestSign", functions.sign);
    library.find("ERR_clear_error", functions.clear_errors);
    return functions;
  }();
  return loaded;
}

/// Without it a key with a password would be asked for on the terminal.
int no_password(char*, int, int, void*) {
  return 0;
}

}  // namespace

std::vector<unsigned char> sign_rs256(std::string_view message, std::string_view private_key_pem) {
  const Crypto& c = crypto();
  void* const bio = c.bio_new(private_key_pem.data(), static_cast<int>(private_key_pem.size()));
  void* const key = bio == nullptr ? nullptr : c.read_key(bio, nullptr, &no_password, nullptr);
  if (bio != nullptr) c.bio_free(bio);
  void* const context = key == nullptr ? nullptr : c.context_new();
  std::vector<unsigned char> signature;
  bool done = false;
  if (context != nullptr && c.sign_init(context, nullptr, c.sha256(), nullptr, key) == 1) {
    const auto* const data = reinterpret_cast<const unsigned char*>(message.data());
    std::size_t size = 0;
    if (c.sign(context, nullptr, &size, data, message.size()) == 1) {
      signature.resize(size);
      done = c.sign(context, signature.data(), &size, data, message.size()) == 1;
      signature.resize(size);
    }
  }
  if (context != nullptr) c.context_free(context);
  if (key != nullptr) c.key_free(key);
  c.clear_errors();  // the queue is the thread's, and others may look into it
  if (!done) throw Error(ErrorCode::kInvalidArgument, "the private key is no RSA key in PEM, or has a password");
  return signature;
}

}  // namespace torchsnapshot
