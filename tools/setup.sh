#!/usr/bin/env bash
# Brings a Debian 12 machine (or a relative of it) to where `make` works: the missing apt packages, and .venv with
# what requirements-dev.txt pins. Does nothing, in well under a second, where all of it is there.
#
# Usage: tools/setup.sh [--lint] [--bench] [--judges]
#        --lint, --bench  also what `make lint`, or `make bench`, needs
#        --judges  also radosgw, against which a test holds the object stores (64 MB; skipped where it is not installed)
#        PYTHON=/path/to/python3 tools/setup.sh    the Python that .venv is made of; 3.11 or newer, default python3
set -euo pipefail
cd "$(dirname "$0")/.."

lint=false bench=false judges=false
for argument; do
  case $argument in
    --lint) lint=true ;;
    --bench) bench=true ;;
    --judges) judges=true ;;
    *)
      echo "setup: $argument is no option" >&2
      exit 2
      ;;
  esac
done

# --- system packages ---------------------------------------------------------------------------------------------
works() { command -v "$1" >/dev/null && "$@" >/dev/null 2>&1; }

missing=()
need() {  # need PACKAGE...: by name
  local status
  for package in "$@"; do
    status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    if [[ $status != installed ]]; then missing+=("$package"); fi
  done
}

collect() {
  missing=()
  works g++ --version || missing+=(g++)
  works make --version || missing+=(make)
  works cmake --version || [[ -x /usr/bin/cmake ]] || missing+=(cmake)
  works ninja --version || [[ -x /usr/bin/ninja ]] || missing+=(ninja-build)
  works "${PYTHON:-python3}" --version || missing+=(python3 python3-venv python3-dev)
  # Debian splits its Python; others come whole.
  if [[ $(readlink -f "$(command -v "${PYTHON:-python3}")") == /usr/bin/* ]]; then need python3-venv python3-dev; fi
  need ccache libcli11-dev libcurl4-openssl-dev libyaml-cpp-dev liburing-dev
  need libgtest-dev libgmock-dev librapidcheck-dev nlohmann-json3-dev
  if $lint; then
    works clang-format --version || missing+=(clang-format)
    works clang-tidy --version || missing+=(clang-tidy)
    need clang libclang-rt-dev  # for the fuzzers
  fi
  if $bench; then need fio libbenchmark-dev; fi
  if $judges; then need radosgw ceph-mon ceph-osd; fi
}

if ! command -v dpkg-query >/dev/null; then
  echo "setup: no Debian packages on this system. Install by its own means: g++ (C++20), cmake, ninja, make, ccache," \
       "Python 3.11+ with its headers, libcurl, yaml-cpp, gtest and gmock, rapidcheck, nlohmann-json, clang-format and clang-tidy"
else
  collect
  if ((${#missing[@]})); then
    if [[ $(id -u) == 0 ]]; then
      as_root=()
    elif sudo -n true 2>/dev/null; then
      as_root=(sudo)
    else
      echo "setup: these packages are missing, and installing them takes root:" >&2
      echo "  sudo apt-get install ${missing[*]}" >&2
      exit 1
    fi
    echo "setup: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    install=("${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}")
    # The package lists may be absent or old; fetching them is slow, so only then.
    "${install[@]}" || { "${as_root[@]}" apt-get update -q && "${install[@]}"; }
    collect
    if ((${#missing[@]})); then
      echo "setup: still missing after the installation: ${missing[*]}" >&2
      exit 1
    fi
  fi
fi

# --- Python packages ---------------------------------------------------------------------------------------------
python=${PYTHON:-python3}
stamp=.venv/.requirements
wanted=$(sha256sum <requirements-dev.txt)
if [[ -x .venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]] && .venv/bin/python -c ''; then exit 0; fi

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "setup: $("$python" --version) is too old to develop with (the package itself takes 3.10): set PYTHON to 3.11+" >&2
  exit 1
fi
if ! .venv/bin/python -c '' 2>/dev/null; then
  rm -rf .venv
  "$python" -m venv .venv
fi
echo "setup: installing requirements-dev.txt into .venv"
.venv/bin/python -m pip install -q -r requirements-dev.txt
printf '%s\n' "$wanted" >"$stamp"
