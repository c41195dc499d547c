#include "pipeline/options.h"

#include <string>

#include "exec/memory_budget.h"

namespace torchsnapshot {

std::uint64_t budget_or_default(const IoOptions& options) {
  return options.memory_budget_bytes != 0 ? options.memory_budget_bytes : default_memory_budget(1);
}

void pass_on_notices(Storage& storage, const IoOptions& options) {
  if (!options.on_notice) return;
  for (const std::string& notice : storage.take_notices()) options.on_notice(notice);
}

}  // namespace torchsnapshot
