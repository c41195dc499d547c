#!/usr/bin/env bash
# `pip install .` as a user runs it: with build isolation, in an environment that has no torch; then the package at
# work in it, with torch lent by .venv. And where torch is there already, it installs nothing but itself.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tools/env.sh

work=$PWD/build/wheel-test
rm -rf "$work"
mkdir -p "$work"
"$VENV/bin/python" -m venv "$work/venv"
python=$work/venv/bin/python

"$python" -m pip install -q --no-deps .
if "$python" -c 'import torch' 2>/dev/null; then
  echo "wheel-test: the new environment has torch; it can't show that the build needs none"
  exit 1
fi

"$VENV/bin/python" -c 'import site; print(site.getsitepackages()[0])' \
  >"$("$python" -c 'import site; print(site.getsitepackages()[0])')/lent.pth"
(cd "$work" && "$python" "$OLDPWD/tests/install/wheel_check.py" "$work/venv")

"$VENV/bin/python" -m pip install -q --dry-run --report "$work/all.json" .
"$VENV/bin/python" - "$work/all.json" <<'PYTHON'
import json
import sys

names = [item["metadata"]["name"] for item in json.load(open(sys.argv[1]))["install"]]
if names != ["torchsnapshot"]:
    sys.exit(f"wheel-test: where torch is installed, pip install would install {names}")
PYTHON
echo "wheel-test: fine"
rm -rf "$work"
