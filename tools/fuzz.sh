#!/usr/bin/env bash
# Builds the fuzzers with clang, AddressSanitizer and UndefinedBehaviorSanitizer, and runs each for a while on the attacks
# and metadata that the tests keep. What crashes one is left in build/fuzz/findings.
#
# Usage: tools/fuzz.sh [SECONDS_FOR_EACH]    default: 15
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/env.sh

seconds=${1:-15}
clang=$(command -v clang++ || command -v clang++-14)
"$CMAKE" -S . -B build/fuzz -G Ninja -DCMAKE_MAKE_PROGRAM="$(command -v "$NINJA")" -DCMAKE_CXX_COMPILER="$clang" \
  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DTORCHSNAPSHOT_FUZZ=ON -DTORCHSNAPSHOT_INSTALL=OFF \
  -DTORCHSNAPSHOT_SANITIZE="address,undefined" >build/fuzz-configure.log || { cat build/fuzz-configure.log; exit 1; }
"$CMAKE" --build build/fuzz -j "$JOBS" --target metadata_fuzz sidecar_fuzz names_fuzz index_fuzz

mkdir -p build/fuzz/findings build/fuzz/corpus/{metadata,sidecar,names,index} build/fuzz/seeds
cp -f tests/attacks/*.json tests/attacks/*.yaml build/fuzz/seeds/
cp -f tests/data/metadata/* build/fuzz/seeds/
for snapshot in tests/data/corpus/*/snapshot; do
  cp "$snapshot/.snapshot_metadata" "build/fuzz/seeds/$(basename "$(dirname "$snapshot")")"
done

total=0
for target in metadata sidecar names index; do
  echo "fuzz: $target for $seconds s"
  log=build/fuzz/$target.log
  if ! UBSAN_OPTIONS=print_stacktrace=1 build/fuzz/tests/fuzz/${target}_fuzz -max_total_time="$seconds" -timeout=20 \
    -rss_limit_mb=3000 -max_len=20000 -print_final_stats=1 -artifact_prefix=build/fuzz/findings/$target- \
    build/fuzz/corpus/$target build/fuzz/seeds >"$log" 2>&1; then
    tail -60 "$log"
    exit 1
  fi
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  echo "fuzz: $target: $runs inputs, no finding"
  total=$((total + runs))
done
echo "fuzz: $total inputs in all, no finding"
