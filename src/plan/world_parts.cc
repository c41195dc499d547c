#include "plan/world_parts.h"

#include <algorithm>
#include <map>
#include <utility>

#include "manifest/compact_stream.h"
#include "torchsnapshot/error.h"

namespace torchsnapshot {

Digest digest_of_bytes(std::string_view bytes) noexcept {
  Digester digester;
  digester.add(bytes);
  return digester.digest();
}

std::string serialize(const CompactPart& part) {
  CompactWriter writer;
  writer.text(part.form);
  writer.text(part.places);
  writer.text(part.values);
  return writer.take();
}

CompactPart parse_part(std::string_view bytes) {
  CompactReader reader(bytes);
  CompactPart part;
  part.form = reader.text();
  part.places = reader.text();
  part.values = reader.text();
  if (!reader.at_end()) CompactReader::fail("something is left over");
  return part;
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
  std::size_t form = forms_.size();
  for (std::size_t i = 0; i < forms_.size() && form == forms_.size(); ++i) {
    if (forms_[i].digest == digest) form = i;
  }
  if (form == forms_.size()) {
    forms_.push_back({digest, std::make_shared<const std::string>(std::move(part.form))});
  }
  ranks_[rank] = {form, std::move(part.places), std::move(part.values)};
}

void WorldParts::set_like(std::size_t rank, std::size_t other, CompactPart rest) {
  ranks_[rank] = {ranks_[other].form, std::move(rest.places), std::move(rest.values)};
}

void WorldParts::set_values(std::size_t rank, std::string values) {
  ranks_[rank].values = std::move(values);
}

std::size_t WorldParts::bytes() const noexcept {
  std::size_t bytes = ranks_.size() * sizeof(Rank);
  for (const Form& form : forms_) bytes += sizeof(Form) + form.bytes->size();
  for (const Rank& rank : ranks_) bytes += rank.places.size() + rank.values.size();
  return bytes;
}

CompactPart WorldParts::part(std::size_t rank) const {
  const Rank& found = ranks_[rank];
  return {*forms_[found.form].bytes, found.places, found.values};
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

std::vector<std::size_t> form_senders(const std::vector<Digest>& digests) {
  std::map<Digest, std::size_t> first;
  std::vector<std::size_t> senders(digests.size());
  for (std::size_t rank = 0; rank < digests.size(); ++rank) {
    senders[rank] = first.try_emplace(digests[rank], rank).first->second;
  }
  return senders;
}

}  // namespace torchsnapshot
