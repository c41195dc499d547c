// Mutexes that are free in a forked child.
#pragma once

#include <mutex>

namespace torchsnapshot {

/// From now on `mutex` is locked while this process forks, so that the child never finds it held by a thread that it
/// does not have. The mutex lives as long as the process; several are locked in the order in which they came here.
void lock_over_fork(std::mutex& mutex);

}  // namespace torchsnapshot
