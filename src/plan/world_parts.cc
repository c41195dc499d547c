#include "plan/world_parts.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "core/little_endian.h"
#include "manifest/compact_stream.h"
#include "manifest/validate.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {
namespace {

struct DigestHash {
  std::size_t operator()(const Digest& digest) const noexcept { return digest.low; }
};

}  // namespace

Digest digest_of_bytes(std::string_view bytes) noexcept {
  Digester digester;
  digester.add(bytes);
  return digester.digest();
}

std::string serialize_rest(const CompactPart& part) {
  CompactWriter writer;
  writer.text(part.places);
  writer.text(part.values);
  return writer.take();
}

CompactPart parse_rest(std::string_view bytes) {
  CompactReader reader(bytes);
  CompactPart part;
  part.places = reader.text();
  part.values = reader.text();
  if (!reader.at_end()) CompactReader::fail("something is left over");
  return part;
}

void WorldParts::set(std::size_t rank, CompactPart part) {
  const Digest digest = digest_of_bytes(part.form);
  const auto [found, is_new] = form_of_.try_emplace({digest.high, digest.low}, forms_.size());
  if (is_new) forms_.push_back(std::make_shared<const std::string>(std::move(part.form)));
  ranks_[rank] = {found->second, std::move(part.places), std::move(part.values)};
}

void WorldParts::set_like(std::size_t rank, std::size_t other, CompactPart rest) {
  ranks_[rank] = {ranks_[other].form, std::move(rest.places), std::move(rest.values)};
}

void WorldParts::set_values(std::size_t rank, std::string values) {
  ranks_[rank].values = std::move(values);
}

std::size_t WorldParts::bytes() const noexcept {
  std::size_t bytes = ranks_.size() * sizeof(Rank);
  for (const auto& form : forms_) bytes += form->size();
  for (const Rank& rank : ranks_) bytes += rank.places.size() + rank.values.size();
  return bytes;
}

CompactPart WorldParts::part(std::size_t rank) const {
  const Rank& found = ranks_[rank];
  return {*forms_[found.form], found.places, found.values};
}

Manifest WorldParts::merge(std::string_view take_id, const std::vector<ReplicatedLeaf>& replicated) const {
  if (replicated.empty()) {  // nothing to put together
    Manifest merged;
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      decode_part(part(rank), static_cast<std::int64_t>(rank), take_id, merged);
    }
    return merged;
  }
  std::vector<Manifest> parts(ranks_.size());
  for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
    decode_part(part(rank), static_cast<std::int64_t>(rank), take_id, parts[rank]);
  }
  return merge_manifests(parts, replicated);
}

std::string serialize(const PartNotice& notice) {
  std::string bytes(1, notice.is_well ? 'M' : 'E');
  put_little_endian(bytes, notice.form.high);
  put_little_endian(bytes, notice.form.low);
  put_little_endian(bytes, notice.rest_bytes);
  return bytes;
}

PartNotice parse_notice(std::string_view bytes) {
  if (bytes.size() != PartNotice::kBytes) CompactReader::fail("a notice has another size");
  return {bytes[0] == 'M',
          {get_little_endian<std::uint64_t>(bytes, 1), get_little_endian<std::uint64_t>(bytes, 9)},
          get_little_endian<std::uint64_t>(bytes, 17)};
}

PartCall call_for(const std::vector<PartNotice>& notices) {
  PartCall call;
  std::unordered_map<Digest, std::size_t, DigestHash> known;
  known.reserve(1024);
  bool all_well = true;
  for (std::size_t rank = 0; rank < notices.size(); ++rank) {
    const std::uint64_t rest_bytes = notices[rank].rest_bytes;
    if (rest_bytes > PartNotice::kShortRest) call.longest_rest = std::max(call.longest_rest, rest_bytes);
    all_well = all_well && notices[rank].is_well;
    const bool is_new = known.try_emplace(notices[rank].form, rank).second;
    if (is_new && rank != 0) call.senders.push_back(static_cast<std::int64_t>(rank));
  }
  if (!all_well) call.senders.clear();
  return call;
}

std::string serialize(const PartCall& call) {
  CompactWriter writer;
  writer.number(call.longest_rest);
  writer.number(call.senders.size());
  std::int64_t last = 0;
  for (const std::int64_t sender : call.senders) {
    writer.number(static_cast<std::uint64_t>(sender - last));
    last = sender;
  }
  return writer.take();
}

PartCall parse_call(std::string_view bytes) {
  CompactReader reader(bytes);
  PartCall call;
  call.longest_rest = reader.number();
  call.senders.resize(reader.count());
  std::int64_t last = 0;
  for (std::int64_t& sender : call.senders) {
    const std::uint64_t step = reader.number();
    if (step == 0 || step > static_cast<std::uint64_t>(kMaxWorldSize - last)) CompactReader::fail("no such rank");
    sender = last += static_cast<std::int64_t>(step);
  }
  if (!reader.at_end()) CompactReader::fail("something is left over");
  return call;
}

WorldParts put_together(const CompactPart& mine, const std::vector<PartNotice>& notices, const PartCall& call,
                        const std::vector<std::string>& rests, const std::vector<std::string>& forms) {
  WorldParts parts(notices.size());
  std::unordered_map<Digest, std::size_t, DigestHash> known;  // rank that has sent it
  const auto add = [&](std::size_t rank, CompactPart part) {
    known.emplace(notices[rank].form, rank);
    parts.set(rank, std::move(part));
  };
  add(0, mine);
  for (std::size_t i = 0; i < call.senders.size(); ++i) {
    const auto rank = static_cast<std::size_t>(call.senders[i]);
    if (rank >= notices.size()) CompactReader::fail("no such rank");
    if (digest_of_bytes(forms[i]) != notices[rank].form) CompactReader::fail("a form is not what was told of it");
    CompactPart part = parse_rest(rests[rank]);
    part.form = forms[i];
    add(rank, std::move(part));
  }
  std::size_t next = 0;
  for (std::size_t rank = 1; rank < notices.size(); ++rank) {
    if (next < call.senders.size() && call.senders[next] == static_cast<std::int64_t>(rank)) {
      ++next;
      continue;
    }
    const auto like = known.find(notices[rank].form);
    if (like == known.end()) CompactReader::fail("nobody has sent a form");
    parts.set_like(rank, like->second, parse_rest(rests[rank]));
  }
  return parts;
}

}  // namespace torchsnapshot
