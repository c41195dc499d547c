// The command line.
#pragma once

namespace torchsnapshot::cli {

/// Parses, runs the command, and tells what went wrong. Returns the exit status.
int run(int argc, char** argv);

}  // namespace torchsnapshot::cli
