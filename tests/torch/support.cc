#include "tests/torch/support.h"

#include <ATen/ATen.h>

#include "libtorch/archive.h"

namespace torchsnapshot::libtorch {
namespace {

void expect_same_tensor(const at::Tensor& a, const at::Tensor& b, const std::string& where) {
  ASSERT_TRUE(a.defined() && b.defined()) << where;
  EXPECT_EQ(a.scalar_type(), b.scalar_type()) << where;
  if (a.is_quantized()) {
    EXPECT_TRUE(b.is_quantized() && a.q_scale() == b.q_scale() && at::equal(a.int_repr(), b.int_repr())) << where;
  } else {
    EXPECT_TRUE(a.sizes() == b.sizes() && at::equal(a, b)) << where;
  }
}

}  // namespace

void expect_same(const c10::IValue& a, const c10::IValue& b, const std::string& where) {
  if (a.isTensor()) {
    ASSERT_TRUE(b.isTensor()) << where << " is a " << b.tagKind();
    expect_same_tensor(a.toTensor(), b.toTensor(), where);
  } else if (a.isGenericDict()) {
    ASSERT_TRUE(b.isGenericDict()) << where << " is a " << b.tagKind();
    ASSERT_EQ(a.toGenericDict().size(), b.toGenericDict().size()) << where;
    auto other = b.toGenericDict().begin();
    for (const auto& item : a.toGenericDict()) {  // order counts too
      expect_same(item.key(), (*other).key(), where + " key");
      expect_same(item.value(), (*other).value(),
                  where + "/" + (item.key().isString() ? item.key().toStringRef() : "?"));
      ++other;
    }
  } else if (a.isList() || a.isTuple()) {
    ASSERT_EQ(a.isList(), b.isList()) << where;
    ASSERT_EQ(a.isTuple(), b.isTuple()) << where;
    const auto x = detail::as_list(a, where);
    const auto y = detail::as_list(b, where);
    ASSERT_EQ(x.size(), y.size()) << where;
    for (std::size_t i = 0; i < x.size(); ++i) expect_same(x[i], y[i], where + "/" + std::to_string(i));
  } else if (is_bytes(a)) {
    ASSERT_TRUE(is_bytes(b)) << where;
    EXPECT_EQ(bytes_of(a), bytes_of(b)) << where;
  } else {
    EXPECT_EQ(a.tagKind(), b.tagKind()) << where;
    EXPECT_TRUE(a == b) << where << ": " << a << " and " << b;
  }
}

void expect_same(const torch::OrderedDict<std::string, at::Tensor>& a,
                 const torch::OrderedDict<std::string, at::Tensor>& b) {
  for (const auto& item : a) expect_same_tensor(item.value(), b[item.key()], item.key());
}

}  // namespace torchsnapshot::libtorch
