#!/usr/bin/env bash
# Runs the tests of a built preset and ends with their counts.
#
# Usage: tools/test.sh PRESET cpp [CTEST-ARGUMENT...]
#        tools/test.sh PRESET python [PYTEST-ARGUMENT...]
#        tools/test.sh PRESET all
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/env.sh

preset=$1 what=$2
shift 2
results=$PWD/build/$preset/test-results
failed=0

if [[ $what != python ]]; then
  rm -f "$results"/*.xml
  # The kernel may place mappings where ThreadSanitizer of this age can't have them.
  wrap=()
  # Left out: thousands of cases that are about bytes, not about threads, and tests whose own threads race on purpose.
  if [[ $preset == tsan ]]; then wrap=(env GTEST_FILTER='-Damage.*:*.FlippedBits*:*/PowerCut.*:Verify.*:LazyTake.*' setarch --addr-no-randomize); fi
  # A process that is killed has nothing that a sanitizer could say.
  if [[ $preset == asan ]]; then wrap=(env GTEST_FILTER='-Kill.*'); fi
  "${wrap[@]}" "$CTEST" --test-dir "build/$preset" -j "$JOBS" --output-on-failure --no-tests=error "$@" || failed=1
fi

if [[ $what != cpp ]]; then
  rm -f "$results"/python*.xml
  environment=(PYTHONPATH="$PWD/build/$preset/python" TORCHSNAPSHOT_TEST_TORCH_BUILD="$PWD/build/$preset")
  if [[ $preset == torch-asan ]]; then
    # Only the programs that the tests start are sanitized. torch itself is not: what it keeps is no leak of ours, and
    # its containers have no marks of what is in use.
    environment=(PYTHONPATH="$PWD/build/torch/python" TORCHSNAPSHOT_TEST_TORCH_BUILD="$PWD/build/$preset"
                 ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1:detect_container_overflow=0
                 UBSAN_OPTIONS="print_stacktrace=1:suppressions=$PWD/tools/sanitizers/ubsan.supp")
  fi
  if [[ $preset == asan ]]; then
    # The interpreter is not sanitized, so the runtimes have to be there before everything else (libstdc++ too: the
    # hook for exceptions looks for it at the start). What Python and torch keep to the end is no leak of ours.
    preload=
    for library in libasan.so libubsan.so libstdc++.so.6; do preload+="$(g++ -print-file-name=$library) "; done
    environment+=(LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1:allocator_may_return_null=1
                  UBSAN_OPTIONS="print_stacktrace=1:suppressions=$PWD/tools/sanitizers/ubsan.supp")
  fi
  # A shell's background jobs ignore Ctrl-C, and so would the tests of it.
  env --default-signal=INT "${environment[@]}" "$VENV/bin/python" -m pytest --junitxml="$results/python.xml" "$@" || failed=1
fi

"$VENV/bin/python" tools/count_tests.py "$results" || failed=1
if ((failed)); then echo "FAILED: see above"; fi
exit $failed
