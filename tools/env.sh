# Sourced by the scripts here: what they run with. The current directory is the repository's root.
CMAKE=cmake CTEST=ctest
if ! cmake --version >/dev/null 2>&1; then CMAKE=/usr/bin/cmake CTEST=/usr/bin/ctest; fi
NINJA=ninja
if ! ninja --version >/dev/null 2>&1; then NINJA=/usr/bin/ninja; fi
JOBS=${JOBS:-$(nproc)}
VENV=$PWD/.venv
export CCACHE_NOHASHDIR=${CCACHE_NOHASHDIR-1}  # build folders with the same flags share what was compiled
