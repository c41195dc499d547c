#!/usr/bin/env bash
# The main job on real input, in three parts: see README.md beside this. `make demo` builds first, and sets
# TORCHSNAPSHOT_BUILD (a build folder) and PYTHONPATH.
#
# Usage: demo/run.sh [--out DIR] [--dir DIR] [--rounds N]
#   --out     the results: a picture, tables as JSON (default demo-out)
#   --dir     where the second part puts its data, on the disk to be measured (default: the same)
#   --rounds  of the second part (default 3)
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/env.sh

out=demo-out data='' rounds=3
while (($#)); do
  case $1 in
    --out) out=$2 ;;
    --dir) data=$2 ;;
    --rounds) rounds=$2 ;;
    *) echo "usage: demo/run.sh [--out DIR] [--dir DIR] [--rounds N]" >&2; exit 2 ;;
  esac
  shift 2
done
data=${data:-$out}
build=${TORCHSNAPSHOT_BUILD:?the folder of a build with the Python extension; or run: make demo}
mkdir -p "$out" "$data"
snapshot=$data/gpt2-snapshot
trap 'rm -rf "$snapshot" "$out/program"' EXIT
export PYTHONDONTWRITEBYTECODE=1

part() { printf '\n=== %s\n' "$*"; }

part "1. Training, killed with kill -9 and resumed in a new process"
python demo/demo_resume.py --out "$out"

part "2. A state of the size of GPT-2 small, beside torch.save and torch.load"
python demo/gpt2_size.py --out "$out" --dir "$data" --rounds "$rounds" --keep "$snapshot"

part "3. That snapshot from C++, without torch"
quietly() { "$@" >"$out/program.log" 2>&1 || { cat "$out/program.log"; return 1; }; }
quietly "$CMAKE" --install "$build" --component cpp --prefix "$out/program/installed"
quietly "$CMAKE" -S demo -B "$out/program/build" -G Ninja -DCMAKE_MAKE_PROGRAM="$(command -v "$NINJA")" \
  -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$(realpath "$out/program/installed")"
quietly "$CMAKE" --build "$out/program/build"
rm -f "$out/program.log"
python demo/demo_inspect.py --program "$out/program/build/inspect" --snapshot "$snapshot" --expected "$out/gpt2.json"

printf '\nAll three parts agree. Results: %s\n' "$(cd "$out" && ls -d digits.png ./*.json | xargs -n 1 basename | xargs)"
