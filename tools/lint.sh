#!/usr/bin/env bash
# Style, types, layers, and clang-tidy (on the compile commands of build/dev).
#
# Usage: tools/lint.sh [format|python|layers|tidy|torch]...    default: all but torch
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/env.sh

cpp_files() {
  git ls-files --cached --others --exclude-standard -- '*.cc' '*.h' | while read -r file; do
    if [[ -f $file ]]; then echo "$file"; fi
  done
}

lint_format() { cpp_files | xargs clang-format --dry-run -Werror; }

lint_python() {
  "$VENV/bin/ruff" check .
  "$VENV/bin/ruff" format --check .
  "$VENV/bin/mypy"
}

lint_layers() {
  "$VENV/bin/python" tools/check_layers_test.py
  "$VENV/bin/python" tools/check_layers.py
}

# Tests are left out: macros of gtest set off too many checks.
lint_tidy() {
  tools/build.sh dev --configure-only  # the compile commands
  cpp_files | grep -E '^(src|cli|python/bindings)/.*\.cc$' | grep -v '_test\.cc$' |
    xargs -P "$JOBS" -n 1 clang-tidy -p build/dev --quiet --warnings-as-errors='*' 2> >(grep -v 'warnings generated' >&2)
}

# The same for the libtorch face and its examples. Each file takes half a minute, most of it in torch's headers, so that
# this is no part of the continuous integration.
lint_torch() {
  tools/build.sh torch --configure-only
  cpp_files | grep -E '^(libtorch|examples/cpp)/.*\.cc$' |
    xargs -P "$JOBS" -n 1 clang-tidy -p build/torch --quiet --warnings-as-errors='*' 2> >(grep -v 'warnings generated' >&2)
}

if (($# == 0)); then set -- format layers python tidy; fi
for part in "$@"; do
  echo "lint: $part"
  "lint_$part"
done
