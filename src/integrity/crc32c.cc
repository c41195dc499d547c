#include "integrity/crc32c.h"

#include <array>

#include "integrity/crc32c_kernels.h"

namespace torchsnapshot {
namespace detail {
namespace {

struct KernelList {
  std::array<Crc32cKernel, 3> kernels{kTableKernel};
  std::size_t count = 1;

  void add(const Crc32cKernel& kernel) noexcept { kernels[count++] = kernel; }
};

KernelList find_kernels() noexcept {
  KernelList list;
#if defined(__x86_64__)
  if (have_sse42()) list.add(kSse42Kernel);
  if (have_avx512()) list.add(kAvx512Kernel);
#elif defined(__aarch64__) && defined(__linux__)
  if (have_armv8()) list.add(kArmv8Kernel);
#endif
  return list;
}

const Crc32cKernel& best() noexcept {
  static const Crc32cKernel kernel = crc32c_kernels().back();
  return kernel;
}

}  // namespace

std::span<const Crc32cKernel> crc32c_kernels() noexcept {
  static const KernelList list = find_kernels();
  return {list.kernels.data(), list.count};
}

}  // namespace detail

std::uint32_t crc32c(std::uint32_t seed, std::span<const std::byte> data) noexcept {
  return ~detail::best().update(~seed, data.data(), data.size());
}

std::uint32_t copy_crc32c(std::uint32_t seed, std::span<std::byte> dst, std::span<const std::byte> src) noexcept {
  return ~detail::best().copy(~seed, dst.data(), src.data(), src.size());
}

// With L the linear CRC and |d| the bytes of d: crc(d) = L(d) ^ shift(~0, |d|) ^ ~0. So of a and b in a row it is
// shift(L(a) ^ shift(~0, |a|), |b|) ^ L(b) ^ ~0, which is shift(crc(a), |b|) ^ crc(b), since the ~0 cancel.
std::uint32_t crc32c_combine(std::uint32_t crc_a, std::uint32_t crc_b, std::uint64_t len_b) noexcept {
  return detail::best().shift(crc_a, len_b) ^ crc_b;
}

std::uint32_t crc32c_linear(std::span<const std::byte> data) noexcept {
  return detail::best().update(0, data.data(), data.size());
}

std::uint32_t copy_crc32c_linear(std::span<std::byte> dst, std::span<const std::byte> src) noexcept {
  return detail::best().copy(0, dst.data(), src.data(), src.size());
}

std::uint32_t crc32c_shift(std::uint32_t linear, std::uint64_t zeros) noexcept {
  return detail::best().shift(linear, zeros);
}

std::uint32_t crc32c_of_linear(std::uint32_t linear, std::uint64_t size) noexcept {
  return ~(linear ^ detail::best().shift(~std::uint32_t{0}, size));
}

const char* crc32c_kernel_name() noexcept {
  return detail::best().name;
}

}  // namespace torchsnapshot
