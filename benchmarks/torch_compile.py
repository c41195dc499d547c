#!/usr/bin/env python3
"""What including <torchsnapshot/torch.h> adds to the compile time of a program that includes <torch/torch.h>.

User CPU seconds of the compiler, without a cache; both in turn, so that a busy machine slows both alike. Ends with 1
when the header costs more than LIMIT.

Usage: torch_compile.py [ROUNDS]    of a Python that has torch; CXX: the compiler
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[1]
LIMIT = 1.10
SOURCES = {
    "torch alone": "#include <torch/torch.h>\nint main() {}\n",
    "with torchsnapshot": "#include <torch/torch.h>\n#include <torchsnapshot/torch.h>\nint main() {}\n",
}


def compile_seconds(source: str, folder: Path) -> float:
    path = folder / "program.cc"
    path.write_text(source)
    includes = [f"-I{ROOT / 'include'}", *(f"-isystem{path}" for path in include_paths())]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, "-std=c++20", "-O2", *includes, "-c", path, "-o", folder / "program.o"], check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds: dict[str, list[float]] = {name: [] for name in SOURCES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            # The order turns around with each round.
            for name in list(SOURCES)[:: 1 if number % 2 == 0 else -1]:
                seconds[name].append(compile_seconds(SOURCES[name], Path(folder)))
            print({name: round(values[-1], 2) for name, values in seconds.items()}, flush=True)
    alone, both = (statistics.median(values) for values in seconds.values())
    least = min(seconds["with torchsnapshot"]) / min(seconds["torch alone"])
    print(f"torch {torch.__version__}: {alone:.1f} s alone, {both:.1f} s with it: {both / alone:.3f} x")
    print(f"of the least of each: {least:.3f} x")
    return 0 if both / alone <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
