#include "pipeline/options.h"

#include "exec/memory_budget.h"

namespace torchsnapshot {

std::uint64_t budget_or_default(const IoOptions& options) {
  return options.memory_budget_bytes != 0 ? options.memory_budget_bytes : default_memory_budget(1);
}

}  // namespace torchsnapshot
