#include "cli/arguments.h"

int main(int argc, char** argv) {
  return torchsnapshot::cli::run(argc, argv);
}
