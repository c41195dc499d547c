#!/usr/bin/env bash
# Configures and builds a preset in build/PRESET, with the Python extension except for tsan and torch-asan.
#
# Usage: tools/build.sh PRESET [TARGET... | --configure-only [CMAKE-ARGUMENT...]]
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/env.sh

preset=$1
shift
python=ON
if [[ $preset == tsan || $preset == torch-asan ]]; then python=OFF; fi
# libtorch is that of the wheel in .venv.
torch=()
if [[ $preset == torch* ]]; then
  torch=("-DCMAKE_PREFIX_PATH=$("$VENV/bin/python" -c 'import torch; print(torch.utils.cmake_prefix_path)')")
fi

arguments=()
if [[ ${1:-} == --configure-only ]]; then arguments=("${@:2}"); fi
if [[ ! -f build/$preset/build.ninja || ${1:-} == --configure-only ]]; then
  "$CMAKE" --preset "$preset" -DCMAKE_MAKE_PROGRAM="$(command -v "$NINJA")" \
    -DTORCHSNAPSHOT_BUILD_PYTHON=$python -DPython_EXECUTABLE="$VENV/bin/python" "${torch[@]}" "${arguments[@]}"
fi
if [[ ${1:-} == --configure-only ]]; then exit 0; fi
"$CMAKE" --build "build/$preset" -j "$JOBS" ${1:+--target "$@"}
