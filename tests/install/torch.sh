#!/usr/bin/env bash
# torchsnapshot::torch as others use it, with the libtorch of the wheel in .venv: installed, moved elsewhere and found by
# find_package; and by add_subdirectory. The program is examples/cpp/inference.cc. Last, the installed core without torch.
#
# Usage: tests/install/torch.sh BUILD    BUILD: a build folder with TORCHSNAPSHOT_BUILD_TORCH, as build/torch
set -euo pipefail
cd "$(dirname "$0")/../.."
source tools/env.sh

build=$PWD/$1
work=$PWD/build/torch-install-test
rm -rf "$work"
mkdir -p "$work"
torch=$("$VENV/bin/python" -c 'import torch; print(torch.utils.cmake_prefix_path)')

configure() {
  local log=$work/configure.log
  "$CMAKE" -G Ninja -DCMAKE_MAKE_PROGRAM="$(command -v "$NINJA")" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="-g1 -O1" \
    -DTORCHSNAPSHOT_WERROR=ON \
    -DCMAKE_CXX_COMPILER_LAUNCHER="$(command -v ccache || true)" "$@" >"$log" 2>&1 || { cat "$log"; return 1; }
}
build_and_run() {  # build_and_run NAME TARGET
  "$CMAKE" --build "$work/$1" -j "$JOBS" --target "$2" >"$work/build.log" || { cat "$work/build.log"; return 1; }
  "$work/$1/$2" "$work/$1-snapshot"
}

echo "torch-install-test: find_package"
"$CMAKE" --build "$build" -j "$JOBS" --target torchsnapshot_core torchsnapshot_torch >"$work/build.log" ||
  { cat "$work/build.log"; exit 1; }
"$CMAKE" --install "$build" --component cpp --prefix "$work/prefix" >/dev/null
mv "$work/prefix" "$work/moved"  # the package may not know where it was installed
(cd "$work/moved" && find . -name '*torch.h' -o -name '*.a' -o -name '*.cmake' | sort)
if grep -rq -e "$PWD" "$work/moved" --include='*.cmake'; then
  echo "torch-install-test: the installed package names the source or build folder"
  exit 1
fi
configure -S tests/install/torch -B "$work/find_package" -DCMAKE_PREFIX_PATH="$work/moved;$torch"
build_and_run find_package torch_consumer

echo "torch-install-test: add_subdirectory"
configure -S tests/install/torch -B "$work/add_subdirectory" -DCMAKE_PREFIX_PATH="$torch" -DAS_SUBDIRECTORY=ON
build_and_run add_subdirectory torch_consumer

echo "torch-install-test: the core alone, without any torch"
configure -S tests/install/find_package -B "$work/core" -DCMAKE_PREFIX_PATH="$work/moved"
build_and_run core consumer
if configure -S tests/install/torch -B "$work/no_torch" -DCMAKE_PREFIX_PATH="$work/moved" >"$work/refusal" 2>&1; then
  echo "torch-install-test: the component torch was found without a Torch"
  exit 1
fi
grep -q "Torch" "$work/refusal"
rm -rf "$work"
echo "torch-install-test: fine"
