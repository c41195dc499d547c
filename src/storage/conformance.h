// The tests that every Storage backend passes. A backend's test file names its backends:
//   INSTANTIATE_TEST_SUITE_P(Fs, StorageConformance, testing::Values(fs_backend), backend_name);
// and is linked with conformance_test.cc, which holds the tests.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// Opens the same place anew each time. The place goes when the last copy goes.
using OpenPlace = std::function<std::shared_ptr<Storage>()>;

struct ConformanceBackend {
  std::string name;  ///< letters and digits
  /// Makes an empty place that no other call returned.
  std::function<OpenPlace()> make_place;

  friend void PrintTo(const ConformanceBackend& backend, std::ostream* out) { *out << backend.name; }
};

inline std::string backend_name(const testing::TestParamInfo<ConformanceBackend>& info) {
  return info.param.name;
}

class StorageConformance : public testing::TestWithParam<ConformanceBackend> {
 protected:
  OpenPlace open_place_ = GetParam().make_place();
  std::shared_ptr<Storage> storage_ = open_place_();
};

}  // namespace torchsnapshot
