// The entries of all ranks, as rank 0 has them: packed, and what is alike once. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "manifest/compact_part.h"
#include "plan/digest.h"
#include "plan/world_plan.h"

namespace torchsnapshot {

Digest digest_of_bytes(std::string_view bytes) noexcept;

/// All of a part but its form, ready to be sent. The parse throws Error(kCorrupt) for what the other does not write.
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

  std::vector<std::shared_ptr<const std::string>> forms_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::size_t> form_of_;  ///< by digest
  std::vector<Rank> ranks_;
};

// The way of the parts to rank 0, where there are many ranks: each gives notice of its form; rank 0 calls for one of
// each form; those that were called send it, and all the rest, if it was too long for the notice; and rank 0 puts them
// together.

struct PartNotice {
  static constexpr std::size_t kBytes = 1 + 3 * 8;
  static constexpr std::size_t kShortRest = 64;  ///< a rest that is no longer goes with the notice
  bool is_well = true;                           ///< false: there is an error in place of the rest
  Digest form;                                   ///< of its bytes
  std::uint64_t rest_bytes = 0;                  ///< of serialize_rest, or of the error
  friend bool operator==(const PartNotice&, const PartNotice&) = default;
};
std::string serialize(const PartNotice& notice);
PartNotice parse_notice(std::string_view bytes);

struct PartCall {
  std::uint64_t longest_rest = 0;     ///< 0: all went with the notices
  std::vector<std::int64_t> senders;  ///< of forms, ascending; not rank 0; none when a rank is not well
  friend bool operator==(const PartCall&, const PartCall&) = default;
};
/// `notices`: of all ranks, by rank.
PartCall call_for(const std::vector<PartNotice>& notices);
std::string serialize(const PartCall& call);
PartCall parse_call(std::string_view bytes);

/// `mine`: rank 0's. `rests`: of all ranks, by rank. `forms`: of the senders. Throws Error(kCorrupt) where a form is
/// not what its rank gave notice of.
WorldParts put_together(const CompactPart& mine, const std::vector<PartNotice>& notices, const PartCall& call,
                        const std::vector<std::string>& rests, const std::vector<std::string>& forms);

}  // namespace torchsnapshot
