#!/usr/bin/env bash
# The library as others use it: installed, moved elsewhere and found by find_package; and by add_subdirectory.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tools/env.sh

work=$PWD/build/install-test
rm -rf "$work"
mkdir -p "$work"

configure() {
  local log=$work/configure.log
  "$CMAKE" -G Ninja -DCMAKE_MAKE_PROGRAM="$(command -v "$NINJA")" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_CXX_COMPILER_LAUNCHER="$(command -v ccache || true)" "$@" >"$log" || { cat "$log"; return 1; }
}
build_and_run() {  # build_and_run NAME BUILD-FOLDER
  "$CMAKE" --build "$2" -j "$JOBS" --target consumer >"$2/build.log" || { cat "$2/build.log"; return 1; }
  "$2/consumer" "$work/$1-snapshot"
}

echo "install-test: find_package"
configure -S . -B "$work/library" -DCMAKE_INSTALL_PREFIX="$work/prefix"
"$CMAKE" --build "$work/library" -j "$JOBS" >"$work/library/build.log" || { cat "$work/library/build.log"; exit 1; }
"$CMAKE" --install "$work/library" >/dev/null
mv "$work/prefix" "$work/moved"  # the package may not know where it was installed
mv "$work/library" "$work/gone"  # nor depend on the build
(cd "$work/moved" && find . -type f | sort)
for header in include/torchsnapshot/*.h; do
  if [[ $header == */torch.h ]]; then continue; fi  # goes with the component torch: tests/install/torch.sh
  [[ -f $work/moved/$header ]] || { echo "install-test: $header is not installed"; exit 1; }
done
if grep -rq "$PWD" "$work/moved" --include='*.cmake'; then
  echo "install-test: the installed package names the source or build folder"
  exit 1
fi
configure -S tests/install/find_package -B "$work/find_package" -DCMAKE_PREFIX_PATH="$work/moved"
build_and_run find_package "$work/find_package"

echo "install-test: the command"
"$work/moved/bin/torchsnapshot" verify "$work/find_package-snapshot"
for file in bash-completion/completions/torchsnapshot zsh/site-functions/_torchsnapshot \
            fish/vendor_completions.d/torchsnapshot.fish man/man1/torchsnapshot.1; do
  [[ -s $work/moved/share/$file ]] || { echo "install-test: share/$file is not installed"; exit 1; }
done

echo "install-test: add_subdirectory"
configure -S tests/install/add_subdirectory -B "$work/add_subdirectory"
build_and_run add_subdirectory "$work/add_subdirectory"
rm -rf "$work"
