# Warnings for every target of this project.
add_library(torchsnapshot_warnings INTERFACE)
target_compile_options(torchsnapshot_warnings INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wnon-virtual-dtor -Wold-style-cast
  $<$<BOOL:${TORCHSNAPSHOT_WERROR}>:-Werror>)
