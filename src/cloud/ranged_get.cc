#include "cloud/ranged_get.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <random>

#include "net/encoding.h"

namespace torchsnapshot {
namespace {

std::string range_header(std::uint64_t offset, std::uint64_t count) {
  return "bytes=" + std::to_string(offset) + "-" + std::to_string(offset + count - 1);
}

bool take_number(std::string_view& text, std::uint64_t& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return true;
}

bool take(std::string_view& text, std::string_view wanted) {
  if (!text.starts_with(wanted)) return false;
  text.remove_prefix(wanted.size());
  return true;
}

/// "bytes */10" of a 416: the size.
std::optional<std::uint64_t> size_of_unsatisfied(const HttpResponse& response) {
  std::string_view text = response.header("content-range");
  std::uint64_t size = 0;
  if (!take(text, "bytes */") || !take_number(text, size)) return std::nullopt;
  return size;
}

[[noreturn]] void fail_short(const StoreClient& client, const StoreRequest& request, std::uint64_t offset,
                             std::uint64_t wanted, const std::string& why) {
  throw Error(ErrorCode::kCorrupt, request.operation + " " + client.name_of(request.key) + ": " + why + " instead of " +
                                       std::to_string(wanted) + " bytes from offset " + std::to_string(offset));
}

}  // namespace

RangeCheck check_range(const HttpResponse& head, std::uint64_t offset, std::uint64_t count) {
  const auto length = head.header_number("content-length");
  RangeCheck check;
  if (head.status == 200) {  // the whole object: a store that knows no ranges, or the range was all of it
    check.size = length.value_or(0);
    check.usable = length && offset == 0 && *length <= count;
    if (!check.usable) check.complaint = "the store ignores the Range header";
    return check;
  }
  std::string_view text = head.header("content-range");
  std::uint64_t begin = 0;
  std::uint64_t last = 0;
  if (head.status != 206 || !take(text, "bytes ") || !take_number(text, begin) || !take(text, "-") ||
      !take_number(text, last) || !take(text, "/") || !take_number(text, check.size)) {
    check.complaint = "the answer has no Content-Range";
    return check;
  }
  const std::uint64_t end = std::min(offset + count, check.size);
  check.usable = begin == offset && last + 1 == end && (!length || *length == end - begin);
  if (!check.usable)
    check.complaint = "the answer is 'Content-Range: " + std::string(head.header("content-range")) + "'";
  return check;
}

std::string ranged_get_all(StoreClient& client, const StoreRequest& get, std::uint64_t limit,
                           const std::stop_token& stop) {
  StoreRequest request = get;
  request.max_text = std::max<std::uint64_t>(limit, 64U << 10U);  // an error's document has to fit
  StoreAnswer answer = client.send(request, stop);
  const std::uint64_t size = answer.result.response.header_number("content-length").value_or(0);
  const bool too_large =
      answer.result.fault == TransportFault::kTooLarge || (answer.ok() && answer.result.response.text.size() > limit);
  if (too_large) {
    throw Error(ErrorCode::kCorrupt, request.operation + " " + client.name_of(request.key) + ": it has " +
                                         std::to_string(size) + " bytes, more than the " + std::to_string(limit) +
                                         " that are allowed here");
  }
  if (!answer.ok()) throw client.error_of(request, answer);
  return std::move(answer.result.response.text);
}

ObjectFacts ranged_get_front(StoreClient& client, const StoreRequest& get, std::string_view version_header,
                             std::span<std::byte> out, std::size_t& count, const std::stop_token& stop) {
  StoreRequest request = get;
  request.headers.emplace_back("Range", range_header(0, out.size()));
  request.sink = out;
  request.into_sink = [&out](const HttpResponse& head) {
    return head.status / 100 == 2 && check_range(head, 0, out.size()).usable;
  };
  // Of a store without ranges the rest of a large object is not wanted.
  request.max_text = 64U << 10U;
  const StoreAnswer answer = client.send(request, stop);
  const HttpResponse& response = answer.result.response;
  ObjectFacts facts;
  facts.version = response.header(version_header);
  if (answer.result.fault == TransportFault::kNone && answer.status() == 416) {  // an empty object has no first byte
    if (size_of_unsatisfied(response).value_or(0) != 0) throw client.error_of(request, answer);
    count = 0;
    return facts;
  }
  const bool ignores_ranges =
      response.status == 200 && (answer.ok() || answer.result.fault == TransportFault::kTooLarge);
  if (!answer.ok() && !ignores_ranges) throw client.error_of(request, answer);
  const RangeCheck check = check_range(response, 0, out.size());
  facts.size = check.size;
  count = response.in_sink;
  if (ignores_ranges && !check.usable) {
    count = 0;
    return facts;
  }
  if (!check.usable || count != std::min<std::uint64_t>(out.size(), check.size)) {
    fail_short(client, request, 0, out.size(),
               check.complaint.empty() ? std::to_string(count) + " bytes" : check.complaint);
  }
  return facts;
}

void ranged_get(StoreClient& client, const StoreRequest& get, std::uint64_t offset, std::span<std::byte> out,
                const PlaceBytes& place, const std::stop_token& stop) {
  if (out.empty()) return;
  std::uint64_t from = offset;
  std::span<std::byte> rest = out;
  StoreRequest request = get;
  const auto ask_for_rest = [&](StoreRequest& asked) {
    asked.headers = get.headers;
    asked.headers.emplace_back("Range", range_header(from, rest.size()));
    asked.sink = rest;
  };
  ask_for_rest(request);
  request.into_sink = [&](const HttpResponse& head) {
    return head.status / 100 == 2 && check_range(head, from, rest.size()).usable;
  };
  request.max_text = 64U << 10U;
  std::size_t placed = 0;  // of `out`
  if (place) {
    request.place = [&](std::span<std::byte> dst, std::span<const std::byte> src) {
      const auto at = static_cast<std::size_t>(dst.data() - out.data());
      const std::size_t known = std::min(placed - at, src.size());  // the last byte, of an answer that ended badly
      if (known < src.size()) place(offset + at + known, dst.subspan(known), src.subspan(known));
      placed = at + src.size();
    };
  }
  // What came before the connection broke stays.
  request.before_retry = [&](StoreRequest& asked, const HttpResponse& response) {
    const std::uint64_t got = std::min<std::uint64_t>(response.in_sink, rest.size() - 1);
    from += got;
    rest = rest.subspan(got);
    ask_for_rest(asked);
  };
  const StoreAnswer answer = client.send(request, stop);
  const HttpResponse& response = answer.result.response;
  if (answer.status() == 412) {
    throw Error(ErrorCode::kCorrupt,
                request.operation + " " + client.name_of(request.key) + ": it was replaced while it was being read");
  }
  if (!answer.ok() && answer.result.fault != TransportFault::kTooLarge) throw client.error_of(request, answer);
  const RangeCheck check = check_range(response, from, rest.size());
  if (check.usable && response.in_sink == rest.size()) return;
  fail_short(client, request, from, rest.size(),
             check.complaint.empty() ? std::to_string(response.in_sink) + " bytes" : check.complaint);
}

std::string random_marker() {
  std::random_device random;
  std::string marker;
  for (int word = 0; word < 4; ++word) {
    const std::uint32_t bits = random();
    const std::array<std::uint8_t, 4> bytes = {static_cast<std::uint8_t>(bits), static_cast<std::uint8_t>(bits >> 8U),
                                               static_cast<std::uint8_t>(bits >> 16U),
                                               static_cast<std::uint8_t>(bits >> 24U)};
    marker += to_hex(bytes);
  }
  return marker;
}

std::string crc32c_header(std::uint32_t crc) {
  const std::array<std::uint8_t, 4> bytes = {static_cast<std::uint8_t>(crc >> 24U),
                                             static_cast<std::uint8_t>(crc >> 16U),
                                             static_cast<std::uint8_t>(crc >> 8U), static_cast<std::uint8_t>(crc)};
  return to_base64(bytes);
}

}  // namespace torchsnapshot
