#include "integrity/crc32c.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "integrity/crc32c_kernels.h"
#include "integrity/crc32c_polynomial.h"

namespace torchsnapshot {
namespace {

using detail::Crc32cKernel;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

/// The definition, bit by bit: the judge of everything else, and with the polynomial in another form.
std::uint32_t reference_update(std::uint32_t state, std::span<const std::byte> data) {
  constexpr std::uint64_t polynomial = 0x11EDC6F41;  // bit i: x^i
  std::uint64_t remainder = 0;                       // the state the other way round
  for (int i = 0; i < 32; ++i) remainder |= std::uint64_t{state >> i & 1} << (31 - i);
  for (const std::byte value : data) {
    for (int i = 0; i < 8; ++i) {
      remainder ^= std::uint64_t{std::to_integer<unsigned>(value) >> i & 1U} << 31;
      remainder <<= 1;
      if ((remainder >> 32) != 0) remainder ^= polynomial;
    }
  }
  std::uint32_t result = 0;
  for (int i = 0; i < 32; ++i) result |= static_cast<std::uint32_t>(remainder >> i & 1) << (31 - i);
  return result;
}

std::uint32_t reference(std::uint32_t seed, std::span<const std::byte> data) {
  return ~reference_update(~seed, data);
}

std::vector<std::byte> random_bytes(std::mt19937_64& random, std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (auto& value : bytes) value = static_cast<std::byte>(random());
  return bytes;
}

/// Lengths around the steps of every kernel, many short ones and a few long ones.
std::size_t random_size(std::mt19937_64& random) {
  switch (random() % 4) {
    case 0:
      return random() % 70;
    case 1:
      return random() % 700;
    case 2:
      return std::array<std::size_t, 8>{64, 96, 256, 512, 576, 768, 4032, 4096}[random() % 8] + random() % 17 - 8;
    default:
      return random() % 9000;
  }
}

class KernelTest : public testing::TestWithParam<Crc32cKernel> {};

// RFC 3720, appendix B.4; the last is the check value that catalogues of CRCs list.
const struct {
  std::string data;
  std::uint32_t crc;
} kVectors[] = {
    {std::string(32, '\0'), 0x8A9136AA},
    {std::string(32, '\xFF'), 0x62A8AB43},
    {[] {
       std::string text;
       for (int i = 0; i < 32; ++i) text += static_cast<char>(i);
       return text;
     }(),
     0x46DD794E},
    {[] {
       std::string text;
       for (int i = 31; i >= 0; --i) text += static_cast<char>(i);
       return text;
     }(),
     0x113FDB5C},
    {std::string("\x01\xC0\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
                 "\x14\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x14\x00\x00\x00\x18"
                 "\x28\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00",
                 48),
     0xD9963A56},
    {"", 0},
    {"123456789", 0xE3069283},
};

TEST(Crc32cTest, KnownVectors) {
  for (const auto& [data, crc] : kVectors) {
    EXPECT_EQ(crc32c(0, bytes_of(data)), crc);
    EXPECT_EQ(reference(0, bytes_of(data)), crc);
  }
}

TEST_P(KernelTest, KnownVectors) {
  for (const auto& [data, crc] : kVectors) {
    EXPECT_EQ(~GetParam().update(~0U, bytes_of(data).data(), data.size()), crc);
  }
}

TEST_P(KernelTest, RandomBytesAsTheReference) {
  std::mt19937_64 random(1);
  const auto bytes = random_bytes(random, 20000);
  for (int round = 0; round < 3000; ++round) {
    const std::size_t size = random_size(random);
    const auto data = std::span(bytes).subspan(random() % 4200, size);
    const auto state = static_cast<std::uint32_t>(random());
    ASSERT_EQ(GetParam().update(state, data.data(), size), reference_update(state, data)) << size << " bytes";
  }
}

TEST_P(KernelTest, EveryShortLengthAtEveryAlignment) {
  std::mt19937_64 random(2);
  const auto bytes = random_bytes(random, 1024);
  for (std::size_t at = 0; at < 64; at += 1 + at / 16) {
    for (std::size_t size = 0; size < 600; ++size) {
      const auto data = std::span(bytes).subspan(at, size);
      ASSERT_EQ(GetParam().update(7, data.data(), size), reference_update(7, data)) << size << " bytes at " << at;
    }
  }
}

TEST_P(KernelTest, ReadsNothingBehindTheEnd) {  // to be run under AddressSanitizer
  std::mt19937_64 random(3);
  for (std::size_t size = 0; size < 700; ++size) {
    const auto src = random_bytes(random, size);
    std::vector<std::byte> dst(size);
    const std::uint32_t expected = reference_update(1, src);
    ASSERT_EQ(GetParam().update(1, src.data(), size), expected);
    ASSERT_EQ(GetParam().copy(1, dst.data(), src.data(), size), expected);
    ASSERT_EQ(dst, src);
  }
}

TEST_P(KernelTest, CopiesExactlyTheBytes) {
  std::mt19937_64 random(4);
  const auto src = random_bytes(random, 20000);
  std::vector<std::byte> dst(20000);
  constexpr std::byte canary{0xA5};
  for (int round = 0; round < 3000; ++round) {
    const std::size_t size = random_size(random);
    const std::size_t from = random() % 4200;
    const std::size_t to = 64 + random() % 4200;
    const auto state = static_cast<std::uint32_t>(random());
    std::fill(dst.begin() + static_cast<std::ptrdiff_t>(to - 64),
              dst.begin() + static_cast<std::ptrdiff_t>(to + size + 64), canary);
    const auto data = std::span(src).subspan(from, size);
    ASSERT_EQ(GetParam().copy(state, dst.data() + to, data.data(), size), reference_update(state, data));
    ASSERT_TRUE(size == 0 || std::memcmp(dst.data() + to, data.data(), size) == 0) << size << " bytes";
    const auto is_canary = [&](std::byte value) { return value == canary; };
    ASSERT_TRUE(std::all_of(dst.data() + to - 64, dst.data() + to, is_canary)) << size << " bytes";
    ASSERT_TRUE(std::all_of(dst.data() + to + size, dst.data() + to + size + 64, is_canary)) << size << " bytes";
  }
}

TEST_P(KernelTest, ShiftIsZeroBytes) {
  std::mt19937_64 random(5);
  const std::vector<std::byte> zeros(20000);
  for (int round = 0; round < 1000; ++round) {
    const std::size_t size = round < 300 ? static_cast<std::size_t>(round) : random() % zeros.size();
    const auto state = static_cast<std::uint32_t>(random());
    ASSERT_EQ(GetParam().shift(state, size), reference_update(state, std::span(zeros).first(size))) << size;
  }
}

TEST_P(KernelTest, ShiftsAddUp) {
  std::mt19937_64 random(6);
  for (int round = 0; round < 2000; ++round) {
    const auto state = static_cast<std::uint32_t>(random());
    const std::uint64_t a = random() >> (1 + random() % 63);
    const std::uint64_t b = random() >> (1 + random() % 63);
    ASSERT_EQ(GetParam().shift(GetParam().shift(state, a), b), GetParam().shift(state, a + b));
    // x to this power is 1, and so is x^8.
    ASSERT_EQ(GetParam().shift(state, detail::kOrderOfX), state);
  }
  EXPECT_EQ(GetParam().shift(0, ~std::uint64_t{0}), 0U);
  EXPECT_EQ(GetParam().shift(0x12345678, ~std::uint64_t{0}),
            GetParam().shift(0x12345678, ~std::uint64_t{0} % detail::kOrderOfX));
}

TEST_P(KernelTest, LongInput) {
  std::mt19937_64 random(7);
  const auto bytes = random_bytes(random, (300 << 10) + 13);
  EXPECT_EQ(GetParam().update(3, bytes.data(), bytes.size()), reference_update(3, bytes));
  for (const std::size_t at : {0U, 1U, 32U, 63U, 64U}) {
    std::vector<std::byte> dst(bytes.size() + 128, std::byte{0xA5});
    ASSERT_EQ(GetParam().copy(3, dst.data() + at, bytes.data(), bytes.size()), reference_update(3, bytes));
    const auto begin = dst.begin() + static_cast<std::ptrdiff_t>(at);
    const auto end = begin + static_cast<std::ptrdiff_t>(bytes.size());
    ASSERT_TRUE(std::equal(begin, end, bytes.begin()));
    ASSERT_EQ(std::count(dst.begin(), begin, std::byte{0xA5}) + std::count(end, dst.end(), std::byte{0xA5}), 128);
  }
}

INSTANTIATE_TEST_SUITE_P(All, KernelTest,
                         testing::ValuesIn(detail::crc32c_kernels().begin(), detail::crc32c_kernels().end()),
                         [](const auto& param) { return std::string(param.param.name); });

TEST(Crc32cTest, DispatchTakesTheLastKernel) {
  EXPECT_STREQ(detail::crc32c_kernels().front().name, "table");
  EXPECT_STREQ(crc32c_kernel_name(), detail::crc32c_kernels().back().name);
#if defined(__x86_64__)
  EXPECT_EQ(detail::crc32c_kernels().size(), 1U + (detail::have_sse42() ? 1 : 0) + (detail::have_avx512() ? 1 : 0));
#endif
}

TEST(Crc32cTest, CombineAndLinearLaws) {
  std::mt19937_64 random(8);
  for (int round = 0; round < 3000; ++round) {
    const auto all = random_bytes(random, random_size(random));
    const std::size_t cut = random() % (all.size() + 1);
    const auto a = std::span(all).first(cut);
    const auto b = std::span(all).subspan(cut);
    const auto seed = static_cast<std::uint32_t>(random());
    const std::uint32_t whole = reference(0, all);
    ASSERT_EQ(crc32c_combine(crc32c(0, a), crc32c(0, b), b.size()), whole);
    ASSERT_EQ(crc32c(crc32c(0, a), b), whole);
    ASSERT_EQ(crc32c(seed, all), reference(seed, all));
    ASSERT_EQ(crc32c_of_linear(crc32c_shift(crc32c_linear(a), b.size()) ^ crc32c_linear(b), all.size()), whole);
    std::vector<std::byte> copied(all.size());
    ASSERT_EQ(copy_crc32c(seed, copied, all), reference(seed, all));
    ASSERT_EQ(copied, all);
    std::fill(copied.begin(), copied.end(), std::byte{0});
    ASSERT_EQ(copy_crc32c_linear(copied, all), crc32c_linear(all));
    ASSERT_EQ(copied, all);
  }
}

TEST(PolynomialTest, Constants) {
  using detail::power_of_x;
  using detail::times;
  static_assert(power_of_x(0) == 0x80000000 && power_of_x(31) == 1 && power_of_x(32) == detail::kCrc32cPolynomial);
  static_assert(power_of_x(static_cast<std::int64_t>(detail::kOrderOfX)) == detail::kOne);
  static_assert(times(power_of_x(-33), power_of_x(33)) == detail::kOne);
  std::mt19937_64 random(9);
  for (int round = 0; round < 1000; ++round) {
    const auto a = static_cast<std::int64_t>(random() % 1000000) - 500000;
    const auto b = static_cast<std::int64_t>(random() % 1000000) - 500000;
    ASSERT_EQ(times(power_of_x(a), power_of_x(b)), power_of_x(a + b));
    ASSERT_EQ(detail::times_x(power_of_x(a)), power_of_x(a + 1));
  }
}

}  // namespace
}  // namespace torchsnapshot
