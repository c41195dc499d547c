// Reading and writing one object of an fs storage through the page cache.
#pragma once

#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>

#include "storage/fs_root.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// Writes into `file`, which has its final size already.
std::unique_ptr<ObjectWriter> make_buffered_writer(std::unique_ptr<NewFile> file, std::uint64_t size,
                                                   std::stop_token stop);

/// Reads an object of which open_file_for_read told the size. `name` is for messages.
std::unique_ptr<ObjectReader> make_buffered_reader(std::shared_ptr<Sys> sys, FileDescriptor fd, std::uint64_t size,
                                                   std::string name, std::stop_token stop);

}  // namespace torchsnapshot
