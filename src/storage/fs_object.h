// Reading and writing one object of an fs storage.
#pragma once

#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>

#include "storage/fs_ladder.h"
#include "storage/fs_root.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// Gives `file` its final size and writes into it.
std::unique_ptr<ObjectWriter> make_fs_writer(std::unique_ptr<NewFile> file, std::uint64_t size,
                                             std::shared_ptr<FsLadder> ladder, std::stop_token stop);

/// Reads an object that was opened with FsRoot::open_file_for_read, which told the size.
std::unique_ptr<ObjectReader> make_fs_reader(const std::shared_ptr<FsRoot>& root, const std::string& location,
                                             FileDescriptor fd, std::uint64_t size, std::shared_ptr<FsLadder> ladder,
                                             std::stop_token stop);

}  // namespace torchsnapshot
