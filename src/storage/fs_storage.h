// The file system backend, with the system calls it makes as an argument.
#pragma once

#include <memory>
#include <string>

#include "storage/fs_ladder.h"
#include "storage/posix.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// As open_fs_storage, on other system calls. Writers and readers may outlive the storage.
std::shared_ptr<Storage> make_fs_storage(const std::string& root, std::shared_ptr<Sys> sys,
                                         const FsTuning& tuning = {});

}  // namespace torchsnapshot
