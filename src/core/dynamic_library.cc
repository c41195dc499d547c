#include "core/dynamic_library.h"

#include <dlfcn.h>

#include "torchsnapshot/error.h"

namespace torchsnapshot {

DynamicLibrary::DynamicLibrary(std::span<const std::string> names, const std::string& remedy) : remedy_(remedy) {
  std::string failures;
  for (const std::string& name : names) {
    handle_ = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ != nullptr) {
      loaded_ = name;
      return;
    }
    const char* const reason = ::dlerror();
    failures += std::string(failures.empty() ? "" : "; ") + (reason != nullptr ? reason : name.c_str());
  }
  throw Error(ErrorCode::kUnsupported, remedy_ + " (" + failures + ")");
}

void* DynamicLibrary::address(const char* name) const {
  void* const found = ::dlsym(handle_, name);
  if (found == nullptr) throw Error(ErrorCode::kUnsupported, loaded_ + " has no " + name + ": " + remedy_);
  return found;
}

}  // namespace torchsnapshot
