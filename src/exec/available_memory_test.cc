#include "exec/available_memory.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>

namespace torchsnapshot {
namespace {

using Files = std::map<std::string, std::string>;

ReadFileFn reader_of(Files files) {
  return [files = std::move(files)](const std::string& path) -> std::optional<std::string> {
    const auto found = files.find(path);
    return found == files.end() ? std::nullopt : std::optional(found->second);
  };
}

constexpr std::uint64_t kMiB = 1ULL << 20;
constexpr std::uint64_t kGiB = 1ULL << 30;

TEST(ParseMemAvailable, ReadsItsLine) {
  EXPECT_EQ(
      parse_mem_available("MemTotal:       25000000 kB\nMemFree:  1 kB\nMemAvailable:   1024 kB\nBuffers: 7 kB\n"),
      kMiB);
  EXPECT_EQ(parse_mem_available("MemAvailable: 3 kB"), 3072U);  // no newline at the end
}

TEST(ParseMemAvailable, RefusesWhatItDoesNotUnderstand) {
  for (const char* text :
       {"", "\n", "MemTotal: 1 kB\n", "MemAvailable:\n", "MemAvailable: kB\n", "MemAvailable: 12\n",
        "MemAvailable: 12 MB\n", "MemAvailable: -1 kB\n", "MemAvailable: 1x kB\n", "XMemAvailable: 1 kB\n",
        "MemAvailable: 99999999999999999999 kB\n", "MemAvailable: 18446744073709551615 kB\n"}) {
    EXPECT_EQ(parse_mem_available(text), std::nullopt) << text;
  }
}

TEST(ParseCgroupBytes, NumbersAndNoLimits) {
  EXPECT_EQ(parse_cgroup_bytes("1073741824\n"), kGiB);
  EXPECT_EQ(parse_cgroup_bytes("0"), 0U);
  for (const char* text : {"max\n", "", "\n", "9223372036854771712\n", "-1", "12 34", "0x10", "99999999999999999999"}) {
    EXPECT_EQ(parse_cgroup_bytes(text), std::nullopt) << text;
  }
}

TEST(ParseMemoryStat, FindsTheExactField) {
  constexpr std::string_view kStat = "anon 5\ninactive_file_x 1\nxinactive_file 2\ninactive_file 4096\nactive_file 8\n";
  EXPECT_EQ(parse_memory_stat(kStat, "inactive_file"), 4096U);
  EXPECT_EQ(parse_memory_stat(kStat, "active_file"), 8U);
  EXPECT_EQ(parse_memory_stat(kStat, "slab"), std::nullopt);
  EXPECT_EQ(parse_memory_stat("inactive_file", "inactive_file"), std::nullopt);
  EXPECT_EQ(parse_memory_stat("inactive_file no\n", "inactive_file"), std::nullopt);
}

TEST(ParseCgroupPaths, BothVersions) {
  const auto v2 = parse_cgroup_paths("0::/user.slice/job:1\n");
  EXPECT_EQ(v2.v2, "/user.slice/job:1");  // colons belong to the path
  EXPECT_EQ(v2.v1_memory, std::nullopt);

  const auto hybrid = parse_cgroup_paths("12:cpu,cpuacct:/a\n4:hugetlb,memory:/docker/x\n1:name=systemd:/s\n0::/\n");
  EXPECT_EQ(hybrid.v2, "/");
  EXPECT_EQ(hybrid.v1_memory, "/docker/x");

  const auto none = parse_cgroup_paths("garbage\n::\n5:memory_x:/a\n0:cpu:/b\n4:memory:relative\n");
  EXPECT_EQ(none.v2, std::nullopt);
  EXPECT_EQ(none.v1_memory, std::nullopt);
}

TEST(AvailableMemory, WithoutCgroupsItIsMemAvailable) {
  EXPECT_EQ(available_memory(reader_of({{"/proc/meminfo", "MemAvailable: 2048 kB\n"}})), 2 * kMiB);
  EXPECT_EQ(available_memory(reader_of({})), std::nullopt);
}

TEST(AvailableMemory, V2LimitMinusUsageWithoutFileCache) {
  Files files{{"/proc/meminfo", "MemAvailable: 10485760 kB\n"},
              {"/proc/self/cgroup", "0::/jobs/one\n"},
              {"/sys/fs/cgroup/jobs/one/memory.max", "4294967296\n"},
              {"/sys/fs/cgroup/jobs/one/memory.current", "2147483648\n"},
              {"/sys/fs/cgroup/jobs/one/memory.stat", "anon 1\ninactive_file 1073741824\n"}};
  EXPECT_EQ(available_memory(reader_of(files)), 3 * kGiB);
  files["/sys/fs/cgroup/jobs/one/memory.max"] = "max\n";
  EXPECT_EQ(available_memory(reader_of(files)), 10 * kGiB);
  files["/sys/fs/cgroup/jobs/memory.max"] = "1048576\n";  // a cgroup above limits too
  files["/sys/fs/cgroup/jobs/memory.current"] = "1024\n";
  EXPECT_EQ(available_memory(reader_of(files)), kMiB - 1024);
  files["/sys/fs/cgroup/jobs/memory.current"] = "2097152\n";  // over its limit
  EXPECT_EQ(available_memory(reader_of(files)), 0U);
}

TEST(AvailableMemory, V1InsideAContainerThatShowsTheHostsPath) {
  const Files files{{"/proc/meminfo", "MemAvailable: 10485760 kB\n"},
                    {"/proc/self/cgroup", "4:memory:/docker/0123\n"},
                    {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"},
                    {"/sys/fs/cgroup/memory/memory.usage_in_bytes", "536870912\n"},
                    {"/sys/fs/cgroup/memory/memory.stat", "inactive_file 7\ntotal_inactive_file 268435456\n"}};
  EXPECT_EQ(available_memory(reader_of(files)), 768 * kMiB);
}

TEST(MemoryBudgetOf, ShareAndBounds) {
  EXPECT_EQ(memory_budget_of(10 * kGiB, 1), 6 * kGiB);
  EXPECT_EQ(memory_budget_of(10 * kGiB, 4), 6 * kGiB / 4);
  EXPECT_EQ(memory_budget_of(10 * kGiB, 0), 6 * kGiB);
  EXPECT_EQ(memory_budget_of(1000 * kGiB, 1), 32 * kGiB);
  EXPECT_EQ(memory_budget_of(1000 * kGiB, 8), 32 * kGiB);  // the cap is each rank's
  EXPECT_EQ(memory_budget_of(0, 1), 64 * kMiB);
  EXPECT_EQ(memory_budget_of(std::nullopt, 1), kGiB / 5 * 3);
}

// Any text is read without a fault, and what is read back from a number is that number.
TEST(AvailableMemory, RandomText) {
  std::mt19937_64 random(7);
  constexpr std::string_view kAlphabet = "MemAvailable: 0::/memory,max19\n\0 kB";
  for (int round = 0; round < 1000; ++round) {
    std::string text(random() % 60, ' ');
    for (char& c : text) c = kAlphabet[random() % kAlphabet.size()];
    static_cast<void>(parse_mem_available(text));
    static_cast<void>(parse_cgroup_bytes(text));
    static_cast<void>(parse_memory_stat(text, "Mem"));
    static_cast<void>(available_memory([&](const std::string&) { return text; }));
    const std::uint64_t number = random() >> (5 + random() % 50);
    EXPECT_EQ(parse_cgroup_bytes(std::to_string(number) + "\n"),
              number < (1ULL << 60) ? std::optional(number) : std::nullopt);
    EXPECT_EQ(parse_memory_stat(text + "\nxyz " + std::to_string(number), "xyz"), number);
  }
}

TEST(ReadSmallFile, RealFiles) {
  EXPECT_TRUE(read_small_file("/proc/meminfo").value_or("").starts_with("MemTotal:"));
  EXPECT_EQ(read_small_file("/proc/there/is/no/such/file"), std::nullopt);
  EXPECT_EQ(read_small_file("/proc"), std::nullopt);  // a folder
}

}  // namespace
}  // namespace torchsnapshot
