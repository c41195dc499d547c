#include "torchsnapshot/error.h"

#include <cerrno>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace torchsnapshot {
namespace {

TEST(ErrorTest, NamesAreUniqueAndUpperCase) {
  std::set<std::string_view> names;
  for (int code = 0; code <= static_cast<int>(ErrorCode::kInternal); ++code) {
    const std::string_view name = to_string(static_cast<ErrorCode>(code));
    EXPECT_TRUE(names.insert(name).second) << name;
    EXPECT_EQ(name.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ_"), std::string_view::npos) << name;
    EXPECT_NE(name, "UNKNOWN") << code;
  }
  EXPECT_EQ(to_string(ErrorCode::kNotFound), "NOT_FOUND");
}

TEST(ErrorTest, ContextGoesInFrontAndTheRestStays) {
  const Error inner(ErrorCode::kNoSpace, "pwrite", ENOSPC);
  const Error outer = inner.with_context("object data/0").with_context("writing 0/m/w");
  EXPECT_STREQ(outer.what(), "writing 0/m/w: object data/0: pwrite");
  EXPECT_EQ(outer.code(), ErrorCode::kNoSpace);
  EXPECT_EQ(outer.sys_errno(), ENOSPC);
  EXPECT_STREQ(inner.what(), "pwrite");
}

TEST(ErrorTest, ErrnoBecomesACode) {
  const std::pair<int, ErrorCode> cases[] = {
      {ENOENT, ErrorCode::kNotFound},
      {EACCES, ErrorCode::kPermissionDenied},
      {EPERM, ErrorCode::kPermissionDenied},
      {EROFS, ErrorCode::kPermissionDenied},
      {EEXIST, ErrorCode::kAlreadyExists},
      {ENOTDIR, ErrorCode::kNotADirectory},
      {EISDIR, ErrorCode::kNotADirectory},
      {ENOSPC, ErrorCode::kNoSpace},
      {EDQUOT, ErrorCode::kNoSpace},
      {ENOMEM, ErrorCode::kNoSpace},
      {EIO, ErrorCode::kIo},
      {EBADF, ErrorCode::kIo},
  };
  for (const auto& [sys_errno, code] : cases) {
    const Error error = errno_error(sys_errno, "open /a/b");
    EXPECT_EQ(error.code(), code) << sys_errno;
    EXPECT_EQ(error.sys_errno(), sys_errno);
    EXPECT_THAT(error.what(), testing::StartsWith("open /a/b: "));
  }
  EXPECT_STREQ(errno_error(ENOSPC, "pwrite").what(), "pwrite: No space left on device");
}

}  // namespace
}  // namespace torchsnapshot
