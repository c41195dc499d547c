# Warnings for every target of this project.
add_library(torchsnapshot_warnings INTERFACE)
target_compile_options(torchsnapshot_warnings INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wnon-virtual-dtor -Wold-style-cast
  # g++ 12 sees out-of-bounds accesses in vector code that it has inlined where there are none; 13 does not.
  $<$<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-array-bounds>
  $<$<BOOL:${TORCHSNAPSHOT_WERROR}>:-Werror>)
