// Shared libraries of the system that are loaded when they are needed.
#pragma once

#include <span>
#include <string>

namespace torchsnapshot {

/// A shared library that stays loaded until the process ends. Thread-safe.
class DynamicLibrary {
 public:
  /// Loads the first of `names` that can be. Throws Error(kUnsupported) with the loader's words and `remedy`.
  DynamicLibrary(std::span<const std::string> names, const std::string& remedy);

  /// The address of a function. Throws Error(kUnsupported) when the library lacks it.
  template <typename Function>
  void find(const char* name, Function*& function) const {
    function = reinterpret_cast<Function*>(address(name));
  }

 private:
  [[nodiscard]] void* address(const char* name) const;

  std::string loaded_;
  std::string remedy_;
  void* handle_ = nullptr;
};

}  // namespace torchsnapshot
