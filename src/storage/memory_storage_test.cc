#include <atomic>

#include "storage/conformance.h"
#include "storage/testing.h"

namespace torchsnapshot {
namespace {

const ConformanceBackend kMemory{"Memory", [] {
                                   static std::atomic<int> places = 0;
                                   const std::string name = "conformance-" + std::to_string(++places);
                                   return [name] { return open_memory_storage(name); };
                                 }};

INSTANTIATE_TEST_SUITE_P(Memory, StorageConformance, testing::Values(kMemory), backend_name);

TEST(MemoryStorage, PlacesAreKnownByName) {
  put(*open_memory_storage("by-name-1"), "x", "kept though no handle is open");
  EXPECT_EQ(get(*open_memory_storage("by-name-1"), "x"), "kept though no handle is open");
  EXPECT_TRUE(open_memory_storage("by-name-2")->list("").empty());
  EXPECT_EQ(open_memory_storage("by-name-1")->url(), "memory://by-name-1");
}

TEST(MemoryStorage, AnUnfinishedObjectIsNotFound) {
  const auto storage = open_memory_storage("unfinished");
  const auto writer = storage->create("x", 1, {});
  writer->write(0, bytes_of("1"));
  expect_error(ErrorCode::kNotFound, {"memory://unfinished/x"}, [&] { storage->open("x", {}); });
  EXPECT_TRUE(storage->list("").empty());
}

}  // namespace
}  // namespace torchsnapshot
