// What the tests of torchsnapshot::torch share.
#pragma once

#include <c10/util/Exception.h>
#include <gtest/gtest.h>
#include <torch/ordered_dict.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "torchsnapshot/torch.h"

namespace torchsnapshot::libtorch {

/// A folder that goes with the test.
class TempFolder {
 public:
  TempFolder() : root_(std::filesystem::temp_directory_path() / ("torchsnapshot_torch_" + std::to_string(getpid()))) {
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(root_, ignored);
  }
  [[nodiscard]] std::string path(const std::string& name) const { return (root_ / name).string(); }

 private:
  std::filesystem::path root_;
};

template <typename Body>
void expect_error(ErrorCode code, const std::string& text, Body body) {
  try {
    body();
    FAIL() << "no error, wanted one with: " << text;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

/// Equality of values; of tensors in dtype, shape and bits.
void expect_same(const c10::IValue& a, const c10::IValue& b, const std::string& where = "");
void expect_same(const torch::OrderedDict<std::string, at::Tensor>& a,
                 const torch::OrderedDict<std::string, at::Tensor>& b);

}  // namespace torchsnapshot::libtorch
