// The entries of all ranks, as rank 0 has them: packed, and what is alike once. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "manifest/compact_part.h"
#include "plan/digest.h"
#include "plan/world_plan.h"

namespace torchsnapshot {

Digest digest_of_bytes(std::string_view bytes) noexcept;

/// A rank's part of the entries, ready to be sent in three ways: whole; only the form; all but the form.
/// Each parse throws Error(kCorrupt) for what its writer does not write.
std::string serialize(const CompactPart& part);
CompactPart parse_part(std::string_view bytes);
std::string serialize_rest(const CompactPart& part);
/// The form stays empty.
CompactPart parse_rest(std::string_view bytes);

/// Copies share what does not change.
class WorldParts {
 public:
  explicit WorldParts(std::size_t world_size) : ranks_(world_size) {}

  /// The part of a rank. A form that is known already is kept once.
  void set(std::size_t rank, CompactPart part);
  /// The same with the form of another rank.
  void set_like(std::size_t rank, std::size_t other, CompactPart rest);
  /// New values of the primitives of a rank.
  void set_values(std::size_t rank, std::string values);

  [[nodiscard]] std::size_t world_size() const noexcept { return ranks_.size(); }
  /// Forms that differ.
  [[nodiscard]] std::size_t forms() const noexcept { return forms_.size(); }
  /// Of all that is kept.
  [[nodiscard]] std::size_t bytes() const noexcept;
  /// The part of one rank.
  [[nodiscard]] CompactPart part(std::size_t rank) const;

  /// The manifest of all, as merge_manifests makes it.
  [[nodiscard]] Manifest merge(std::string_view take_id, const std::vector<ReplicatedLeaf>& replicated) const;

 private:
  struct Rank {
    std::size_t form = 0;
    std::string places;
    std::string values;
  };
  struct Form {
    Digest digest;
    std::shared_ptr<const std::string> bytes;
  };

  std::vector<Form> forms_;
  std::vector<Rank> ranks_;
};

/// Who sends a form of which all ranks have told the digests: for each rank, the first that has the same.
std::vector<std::size_t> form_senders(const std::vector<Digest>& digests);

}  // namespace torchsnapshot
