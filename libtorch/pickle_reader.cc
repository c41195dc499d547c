// A stack machine, as pickle is one. It makes only what is listed here: no name in a pickle is ever looked up anywhere
// else. A container that has been put into another one is complete: pickles of Python change it no more (but for
// objects that contain themselves, which are refused), and so neither cycles nor a nesting deeper than kMaxPickleDepth
// can come about.

#include <ATen/ops/empty.h>
#include <c10/core/Storage.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>

#include "libtorch/archive.h"
#include "libtorch/pickle.h"
#include "libtorch/pickle_names.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/tensor.h"
#include "torchsnapshot/torch.h"

namespace torchsnapshot::libtorch {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw Error(ErrorCode::kCorrupt, "the pickle is malformed: " + what);
}

[[noreturn]] void fail_class(const std::string& name) {
  throw Error(ErrorCode::kUnsupported, "it needs " + name +
                                           ", which only Python can make; leave it out of the state in Python, or "
                                           "restore with python_objects = PythonObjects::kSkip");
}

struct Object;
using Ref = std::shared_ptr<Object>;

struct Global {
  std::string name;
};
struct StorageRef {
  at::Storage storage;
  at::ScalarType type;
};
/// A tuple whose elements may be what is no value: classes and storages, as arguments of a call.
using Parts = std::vector<Ref>;

/// What lies on the stack. Shared by stack and memo, as Python's objects are.
struct Object {
  std::variant<c10::IValue, Global, StorageRef, Parts> content;
  std::size_t depth = 0;
  bool complete = false;
};

const c10::IValue& value_of(Object& object) {
  if (const auto* global = std::get_if<Global>(&object.content)) fail_class("the class or function " + global->name);
  if (std::holds_alternative<StorageRef>(object.content)) fail("a storage stands where a value belongs");
  if (const auto* parts = std::get_if<Parts>(&object.content)) {
    std::vector<c10::IValue> values;
    values.reserve(parts->size());
    for (const Ref& part : *parts) values.push_back(value_of(*part));
    object.content = c10::IValue(c10::ivalue::Tuple::create(std::move(values)));
  }
  return std::get<c10::IValue>(object.content);
}

/// Notes that `child` has become a part of `parent`.
void adopt(Object& parent, Object& child) {
  child.complete = true;
  if (parent.complete) fail("a container is changed after its completion");
  parent.depth = std::max(parent.depth, child.depth + 1);
  if (parent.depth > kMaxPickleDepth)
    fail("it is nested more than " + std::to_string(kMaxPickleDepth) + " levels deep");
}

std::string from_latin1(const std::string& utf8) {
  std::string bytes;
  for (std::size_t i = 0; i < utf8.size(); ++i) {
    const auto lead = static_cast<unsigned char>(utf8[i]);
    if (lead < 0x80) {
      bytes += utf8[i];
    } else if ((lead == 0xC2 || lead == 0xC3) && i + 1 < utf8.size()) {
      const auto next = static_cast<unsigned char>(utf8[++i]);
      bytes += static_cast<char>(static_cast<unsigned char>((lead & 3U) << 6U | (next & 0x3FU)));
    } else {
      fail("bytes with a character above 255");
    }
  }
  return bytes;
}

class Reader {
 public:
  Reader(std::string_view pickle, const RecordFn& record) : text_(pickle), record_(record) {}

  c10::IValue read() {
    while (step()) {
    }
    if (stack_.size() != 1) fail("it ends with " + std::to_string(stack_.size()) + " values");
    return value_of(*stack_[0]);
  }

 private:
  // --- the input
  std::string_view take(std::size_t count) {
    if (count > text_.size() - position_) fail("it ends too early");
    const std::string_view part = text_.substr(position_, count);
    position_ += count;
    return part;
  }
  template <typename T>
  T number() {
    std::uint64_t bits = 0;
    const std::string_view bytes = take(sizeof(T));
    for (std::size_t i = sizeof(T); i-- > 0;) bits = bits << 8U | static_cast<unsigned char>(bytes[i]);
    return static_cast<T>(bits);
  }
  std::string line() {
    const std::size_t end = text_.find('\n', position_);
    if (end == std::string_view::npos) fail("a name has no end");
    std::string text(take(end - position_));
    ++position_;
    return text;
  }

  // --- the stack
  template <typename T>
  void push(T content) {
    auto object = std::make_shared<Object>();
    object->content = std::move(content);
    stack_.push_back(std::move(object));
  }
  void push_value(c10::IValue value) { push(std::move(value)); }
  [[nodiscard]] std::size_t base() const noexcept { return marks_.empty() ? 0 : marks_.back(); }
  Object& top() {
    if (stack_.size() <= base()) fail("an operation finds no value");
    return *stack_.back();
  }
  Ref pop() {
    top();
    Ref object = std::move(stack_.back());
    stack_.pop_back();
    return object;
  }
  std::vector<Ref> pop_to_mark() {
    if (marks_.empty()) fail("an operation finds no mark");
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<Ref> items(std::make_move_iterator(begin), std::make_move_iterator(stack_.end()));
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return items;
  }
  std::vector<Ref> pop_some(std::size_t count) {
    std::vector<Ref> items(count);
    while (count > 0) items[--count] = pop();
    return items;
  }

  bool step();
  void push_long(std::size_t size);
  void push_tuple(std::vector<Ref> items);
  void append(const std::vector<Ref>& items);
  void set_items(const std::vector<Ref>& items);
  void get_memo(std::size_t index);
  Parts pop_arguments();
  void reduce();
  void persistent_id();
  void push_tensor(const Parts& arguments);

  std::string_view text_;
  const RecordFn& record_;
  std::size_t position_ = 0;
  std::vector<Ref> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::size_t, Ref> memo_;
  std::unordered_map<std::string, at::Storage> storages_;
};

void Reader::push_long(std::size_t size) {
  const std::string_view bytes = take(size);
  if (size > 8) throw Error(ErrorCode::kUnsupported, "it has an integer of more than 64 bits, which C++ can't have");
  std::uint64_t bits = size > 0 && (static_cast<unsigned char>(bytes[size - 1]) & 0x80U) != 0 ? UINT64_MAX : 0;
  for (std::size_t i = size; i-- > 0;) bits = bits << 8U | static_cast<unsigned char>(bytes[i]);
  push_value(static_cast<std::int64_t>(bits));
}

void Reader::push_tuple(std::vector<Ref> items) {
  auto tuple = std::make_shared<Object>();
  for (const Ref& item : items) adopt(*tuple, *item);
  tuple->content = std::move(items);
  stack_.push_back(std::move(tuple));
}

void Reader::append(const std::vector<Ref>& items) {
  Object& list = top();
  if (!value_of(list).isList()) fail("an element is appended to something else than a list");
  auto elements = value_of(list).toList();
  for (const Ref& item : items) {
    adopt(list, *item);
    elements.push_back(value_of(*item));
  }
}

void Reader::set_items(const std::vector<Ref>& items) {
  Object& dict = top();
  if (!value_of(dict).isGenericDict() || items.size() % 2 != 0) fail("items are set in something else than a dict");
  auto entries = value_of(dict).toGenericDict();
  for (std::size_t i = 0; i < items.size(); i += 2) {
    adopt(dict, *items[i]);
    adopt(dict, *items[i + 1]);
    const c10::IValue& key = value_of(*items[i]);
    if (!key.isInt() && !key.isString() && !key.isDouble() && !key.isBool()) {
      throw Error(ErrorCode::kUnsupported, "it has a dict with keys of the type " + key.tagKind());
    }
    entries.insert_or_assign(key, value_of(*items[i + 1]));
  }
}

void Reader::get_memo(std::size_t index) {
  const auto found = memo_.find(index);
  if (found == memo_.end()) fail("a reference to nothing");
  stack_.push_back(found->second);
}

Parts Reader::pop_arguments() {
  const Ref tuple = pop();
  if (auto* parts = std::get_if<Parts>(&tuple->content)) return *parts;
  const c10::IValue& value = value_of(*tuple);
  if (!value.isTuple()) fail("a call has no tuple of arguments");
  Parts parts;
  for (const c10::IValue& element : value.toTupleRef().elements()) {
    parts.push_back(std::make_shared<Object>());
    parts.back()->content = element;
  }
  return parts;
}

void Reader::reduce() {
  const Parts arguments = pop_arguments();
  const Ref callable = pop();
  const auto* global = std::get_if<Global>(&callable->content);
  if (global == nullptr) fail("something is called that is no function");
  const std::string& name = global->name;
  const auto argument = [&arguments](std::size_t i) -> const c10::IValue& { return value_of(*arguments[i]); };
  if (name == "torch._utils._rebuild_tensor_v2") {
    push_tensor(arguments);
  } else if ((name == "torch._utils._rebuild_parameter" && arguments.size() >= 2 && argument(0).isTensor()) ||
             (name == "torch.Size" && arguments.size() == 1 && argument(0).isTuple())) {
    push_value(argument(0));
  } else if (name == "collections.OrderedDict" && arguments.empty()) {
    push_value(c10::impl::GenericDict(c10::AnyType::get(), c10::AnyType::get()));
  } else if ((name == "__builtin__.complex" || name == "builtins.complex") && arguments.size() == 2 &&
             argument(0).isDouble() && argument(1).isDouble()) {
    push_value(c10::complex<double>(argument(0).toDouble(), argument(1).toDouble()));
  } else if (name == "torch.device" && !arguments.empty() && argument(0).isString()) {
    std::string text = argument(0).toStringRef();
    if (arguments.size() == 2 && argument(1).isInt()) text += ":" + std::to_string(argument(1).toInt());
    push_value(c10::Device(text));
  } else if (name == "_codecs.encode" && arguments.size() == 2 && argument(0).isString() && argument(1).isString() &&
             argument(1).toStringRef() == "latin1") {
    push_value(to_ivalue(Bytes{from_latin1(argument(0).toStringRef())}));
  } else if ((name == "__builtin__.bytes" || name == "builtins.bytes") && arguments.empty()) {
    push_value(to_ivalue(Bytes{}));
  } else {
    fail_class(name);
  }
}

/// ('storage', class, 'key', 'cpu', number of elements)
void Reader::persistent_id() {
  const Parts parts = pop_arguments();
  if (parts.size() != 5) fail("a storage with " + std::to_string(parts.size()) + " fields");
  const auto* global = std::get_if<Global>(&parts[1]->content);
  if (global == nullptr || !global->name.starts_with("torch.")) fail("a storage without a class");
  const auto type = storage_type(std::string_view(global->name).substr(6));
  if (!type) fail_class(global->name);
  const c10::IValue& key = value_of(*parts[2]);
  if (!key.isString()) fail("a storage whose key is no text");
  const auto [found, is_new] = storages_.try_emplace(key.toStringRef());
  if (is_new) {
    std::size_t size = 0;
    at::DataPtr data = record_(key.toStringRef(), size);
    found->second = at::Storage(at::Storage::use_byte_size_t(), size, std::move(data), nullptr, false);
  }
  push(StorageRef{found->second, *type});
}

/// (storage, offset, sizes, strides, requires_grad, hooks): checked before torch sees it.
void Reader::push_tensor(const Parts& arguments) {
  if (arguments.size() < 6) fail("a tensor with " + std::to_string(arguments.size()) + " fields");
  const auto* storage = std::get_if<StorageRef>(&arguments[0]->content);
  if (storage == nullptr) fail("a tensor without a storage");
  const auto dims = [](const Ref& ref) {
    const c10::IValue& value = value_of(*ref);
    if (!value.isTuple()) fail("a tensor whose sizes are no tuple");
    Dims result;
    for (const c10::IValue& dim : value.toTupleRef().elements()) {
      if (!dim.isInt() || dim.toInt() < 0) fail("a tensor with a negative size or stride");
      result.push_back(dim.toInt());
    }
    return result;
  };
  const c10::IValue& offset = value_of(*arguments[1]);
  const Dims sizes = dims(arguments[2]);
  const Dims strides = dims(arguments[3]);
  if (!offset.isInt() || offset.toInt() < 0 || sizes.size() != strides.size()) fail("a tensor with a bad layout");
  const std::uint64_t available = storage->storage.nbytes() / c10::elementSize(storage->type);
  const auto first = static_cast<std::uint64_t>(offset.toInt());
  std::uint64_t last = first;  // index of the last element
  for (std::size_t d = 0; d < sizes.size() && element_count(sizes) > 0; ++d) {
    const auto steps = static_cast<std::uint64_t>(sizes[d] - 1);
    const auto stride = static_cast<std::uint64_t>(strides[d]);
    if (steps > 0 && stride > available / steps) fail("a tensor that reaches beyond its storage");
    last += steps * stride;
    if (last >= available) fail("a tensor that reaches beyond its storage");
  }
  if (first > available || (element_count(sizes) > 0 && last >= available)) {
    fail("a tensor that reaches beyond its storage");
  }
  at::Tensor tensor = at::empty({0}, storage->type);
  tensor.set_(storage->storage, offset.toInt(), sizes, strides);
  push_value(tensor);
}

/// One operation; false for the last one.
bool Reader::step() {
  switch (static_cast<unsigned char>(take(1)[0])) {
    case 0x80:  // PROTO
      if (number<std::uint8_t>() > 5) throw Error(ErrorCode::kUnsupported, "its pickle protocol is newer than 5");
      break;
    case 0x95:  // FRAME
      take(8);
      break;
    case '.':
      return false;
    case '(':
      marks_.push_back(stack_.size());
      break;
    case '0':
      pop();
      break;
    case '1':
      pop_to_mark();
      break;
    case 'N':
      push_value({});
      break;
    case 0x88:
      push_value(true);
      break;
    case 0x89:
      push_value(false);
      break;
    case 'J':
      push_value(static_cast<std::int64_t>(number<std::int32_t>()));
      break;
    case 'K':
      push_value(static_cast<std::int64_t>(number<std::uint8_t>()));
      break;
    case 'M':
      push_value(static_cast<std::int64_t>(number<std::uint16_t>()));
      break;
    case 0x8A:
      push_long(number<std::uint8_t>());
      break;
    case 0x8B:
      push_long(number<std::uint32_t>());
      break;
    case 'G': {
      std::uint64_t bits = 0;
      for (const char c : take(8)) bits = bits << 8U | static_cast<unsigned char>(c);
      push_value(std::bit_cast<double>(bits));
      break;
    }
    case 0x8C:
      push_value(std::string(take(number<std::uint8_t>())));
      break;
    case 'X':
      push_value(std::string(take(number<std::uint32_t>())));
      break;
    case 0x8D:
      push_value(std::string(take(number<std::uint64_t>())));
      break;
    case 'C':
      push_value(to_ivalue(Bytes{std::string(take(number<std::uint8_t>()))}));
      break;
    case 'B':
      push_value(to_ivalue(Bytes{std::string(take(number<std::uint32_t>()))}));
      break;
    case ']':
      push_value(c10::impl::GenericList(c10::AnyType::get()));
      break;
    case '}':
      push_value(c10::impl::GenericDict(c10::AnyType::get(), c10::AnyType::get()));
      break;
    case ')':
      push_tuple({});
      break;
    case 0x85:
      push_tuple(pop_some(1));
      break;
    case 0x86:
      push_tuple(pop_some(2));
      break;
    case 0x87:
      push_tuple(pop_some(3));
      break;
    case 't':
      push_tuple(pop_to_mark());
      break;
    case 'a':
      append(pop_some(1));
      break;
    case 'e':
      append(pop_to_mark());
      break;
    case 's':
      set_items(pop_some(2));
      break;
    case 'u':
      set_items(pop_to_mark());
      break;
    case 'q':
      top(), memo_[number<std::uint8_t>()] = stack_.back();
      break;
    case 'r':
      top(), memo_[number<std::uint32_t>()] = stack_.back();
      break;
    case 0x94:
      top(), memo_.emplace(memo_.size(), stack_.back());
      break;
    case 'h':
      get_memo(number<std::uint8_t>());
      break;
    case 'j':
      get_memo(number<std::uint32_t>());
      break;
    case 'c': {
      const std::string module = line();
      push(Global{module + "." + line()});
      break;
    }
    case 0x93: {  // STACK_GLOBAL
      const Parts names = pop_some(2);
      if (!value_of(*names[0]).isString() || !value_of(*names[1]).isString()) fail("a name that is no text");
      push(Global{value_of(*names[0]).toStringRef() + "." + value_of(*names[1]).toStringRef()});
      break;
    }
    case 'R':
      reduce();
      break;
    case 'Q':
      persistent_id();
      break;
    case 'b':   // BUILD: a state for an object; of what is made here only an OrderedDict or a tensor's hooks could have
                // one
    case 0x81:  // NEWOBJ
    case 0x92:  // NEWOBJ_EX
    {
      const Parts parts = pop_some(2);
      const auto* global = std::get_if<Global>(&parts[0]->content);
      fail_class(global != nullptr ? global->name : "an object with attributes");
    }
    case 0x8F:  // EMPTY_SET
    case 0x91:  // FROZENSET
      fail_class("a set");
    default:
      throw Error(ErrorCode::kUnsupported, "its pickle uses an operation that only Python's own reader knows (" +
                                               std::to_string(static_cast<unsigned char>(text_[position_ - 1])) + ")");
  }
  return true;
}

}  // namespace

c10::IValue read_pickle(std::string_view pickle, const RecordFn& record) {
  return Reader(pickle, record).read();
}

}  // namespace torchsnapshot::libtorch
