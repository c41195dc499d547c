# Warnings for every target of this project.
add_library(torchsnapshot_warnings INTERFACE)
target_compile_options(torchsnapshot_warnings INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wnon-virtual-dtor -Wold-style-cast
  # g++ 12 sees out-of-bounds and overlapping accesses in inlined code of std::vector and std::string where there are
  # none; 13 does not.
  $<$<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-array-bounds;-Wno-restrict>
  $<$<BOOL:${TORCHSNAPSHOT_WERROR}>:-Werror>)
