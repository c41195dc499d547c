"""The benchmark: `make bench`, or PYTHONPATH=build/release/python .venv/bin/python benchmarks/run.py [PART...].

Every part is a set of programs that run in turn, in rounds; benchmarks/README.md tells what is measured and how.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import machine
import part_async
import part_object_store
import part_ranks
import part_scale
import part_single
import part_sync
import report
from client import REPOSITORY
from context import Options, Part

DEFAULT_PARTS = ["few_large", "llm", "small", "async", "single", "object_store", "object_store_far", "scale", "micro"]
ALL_PARTS: dict[str, Callable[[Options], Part]] = {
    "few_large": lambda options: part_sync.run("few_large", options),
    "llm": lambda options: part_sync.run("llm", options),
    "huge": lambda options: part_sync.run("huge", options),
    "small": lambda options: part_sync.run("small", options),
    "async": part_async.run,
    "single": part_single.run,
    "object_store": part_object_store.near,
    "object_store_far": part_object_store.far,
    "scale": part_scale.run,
    "ranks": part_ranks.run,
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    arguments = _arguments()
    parent = arguments.folder or REPOSITORY / "build"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    size = int(arguments.gib * (1 << 30)) >> 20 << 20
    options = Options(folder, max(size, 1 << 20), arguments.rounds, arguments.all_rounds, not arguments.no_original)
    _check_space(options)
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "gib": arguments.gib,
        "rounds": arguments.rounds,
        "machine": machine.facts(folder),
        "parts": {},
    }
    print("\n".join(f"{name}: {value}" for name, value in results["machine"].items()))
    began = time.perf_counter()
    try:
        for name in arguments.parts:
            if name == "micro":
                results["micro"] = _micro()
                continue
            results["parts"][name] = ALL_PARTS[name](options).as_json()
            _keep(results, arguments.name)  # a later part may be interrupted
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    kept = _keep(results, arguments.name)
    print(f"\n{(time.perf_counter() - began) / 60:.1f} minutes; kept as {' and '.join(kept)}")


def _arguments() -> argparse.Namespace:
    environment = os.environ.get
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*ALL_PARTS, "micro"]
    which = f"of {', '.join(known)}; all but huge and ranks by default"
    parser.add_argument("parts", nargs="*", metavar="PART", help=which)
    parser.add_argument("--gib", type=float, default=environment("BENCH_GIB") or "4", help="size of a state")
    parser.add_argument("--rounds", type=int, default=environment("BENCH_ROUNDS") or "5")
    parser.add_argument(
        "--folder",
        type=Path,
        default=environment("BENCH_DIR") or None,
        help="a folder on the disk to test",
    )
    parser.add_argument("--name", default=environment("BENCH_NAME") or "latest", help="of the results that are kept")
    parser.add_argument("--all-rounds", action="store_true", default=bool(environment("BENCH_ALL_ROUNDS")))
    parser.add_argument("--no-original", action="store_true", default=bool(environment("BENCH_NO_ORIGINAL")))
    arguments = parser.parse_args()
    arguments.parts = arguments.parts or DEFAULT_PARTS
    unknown = [part for part in arguments.parts if part not in known]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(known)}")
    if arguments.rounds < 1 or arguments.gib <= 0:
        parser.error("rounds and GiB must be positive")
    return arguments


def _check_space(options: Options) -> None:
    free = shutil.disk_usage(options.folder).free
    if free < 3 * options.size:
        options.folder.rmdir()
        sys.exit(f"bench: {free >> 30} GiB free, and {3 * options.size >> 30} are needed: BENCH_GIB makes it smaller")
    if machine.available_memory() < 4 * options.size:
        print("bench: little memory for this size; with swapping the figures mean nothing. BENCH_GIB makes it smaller")


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _micro() -> list[dict[str, Any]]:
    """Google Benchmark's own table on the terminal, and its figures."""
    program = REPOSITORY / "build" / "release" / "benchmarks" / "micro_benchmarks"
    if not program.exists():
        print("note: no micro-benchmarks in this build; apt-get install libbenchmark-dev, and build again")
        return []
    print("\n== Micro-benchmarks", flush=True)
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        subprocess.run([program, f"--benchmark_out={out.name}", "--benchmark_out_format=json"], check=True)
        return [
            {
                key: benchmark[key]
                for key in ("name", "real_time", "cpu_time", "time_unit", "bytes_per_second", "items_per_second")
                if key in benchmark
            }
            for benchmark in json.loads(Path(out.name).read_text())["benchmarks"]
        ]


def _keep(results: dict[str, Any], name: str) -> list[str]:
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(results, indent=1) + "\n")
    kept = [file]
    if results["parts"]:
        report.plot(results, RESULTS / f"{name}.svg")
        kept.append(RESULTS / f"{name}.svg")
    return [str(path.relative_to(REPOSITORY)) for path in kept]


if __name__ == "__main__":
    main()
