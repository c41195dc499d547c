"""Four ranks on one machine: a take of replicated state against the same take by one process, and restores in which
each rank reads for itself, or one for all; from the disk, cold, and from an object store that is far away.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import report
import torch.distributed as dist
from client import HERE
from context import Options, Part
from files import make_cold
from libraries import remove
from machine import available_memory
from part_object_store import FAR, SECRET, Server

RANKS = 4
SPARE_MEMORY = 2 << 30
MOST_RESTORED = 1 << 30
MOST_FROM_FAR = 256 << 20

ALONE, TOGETHER = "1 process", f"{RANKS} ranks"
#: How restores read: the option `replicated_read`, and the storage's way to the disk.
RESTORES: dict[str, tuple[str, dict[str, str]]] = {
    "direct": ("direct", {}),
    "share": ("share", {}),
    "direct, page cache": ("direct", {"io": "buffered"}),
    "share, page cache": ("share", {"io": "buffered"}),
}


class Ranks:
    """The processes. A job is done by all of them; its time is that of the slowest."""

    def __init__(self) -> None:
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._processes = [
            subprocess.Popen(
                [sys.executable, HERE / "ranks_worker.py", str(rank), str(RANKS), str(self._store.port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(RANKS)
        ]

    def __call__(self, job: str, **arguments: Any) -> dict[str, float]:
        for process in self._processes:
            assert process.stdin
            process.stdin.write(json.dumps({"job": job, **arguments}) + "\n")
            process.stdin.flush()
        results = []
        for process in self._processes:
            assert process.stdout
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"a rank has ended with status {process.wait()}")
            results.append(json.loads(line))
        return {
            "seconds": max(result.get("seconds", 0.0) for result in results),
            "cpu": sum(result.get("cpu", 0.0) for result in results),
        }

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin
            process.stdin.close()
        for process in self._processes:
            process.wait()


@contextmanager
def _ranks() -> Iterator[Ranks]:
    ranks = Ranks()
    try:
        yield ranks
    finally:
        ranks.close()


def run(options: Options) -> Part:
    part = Part("Ranks")
    room = max(64 << 20, available_memory() - SPARE_MEMORY) // (RANKS + 1) >> 26 << 26
    size = min(options.size, room)
    part.facts.update(ranks=RANKS, bytes=size)
    with _ranks() as ranks:
        ranks("make", size=size)
        _takes(part, ranks, options)
        restored = min(size, MOST_RESTORED)
        part.facts["bytes_restored"] = restored
        ranks("make", size=restored)
        _restores(part, ranks, options)
        ranks("make", size=min(size, MOST_FROM_FAR))
        _from_far(part, ranks, options)
    _print(part)
    return part


def _takes(part: Part, ranks: Ranks, options: Options) -> None:
    path = options.folder / "ranks"
    for number in range(options.rounds + 1):
        names = [ALONE, TOGETHER]
        for name in names if number % 2 == 0 else names[::-1]:
            result = ranks("take", path=str(path), alone=name == ALONE, options={})
            if number > 0:  # the first warms the buffers
                part.add("take", name, result["seconds"])
                part.detail("take, CPU seconds", name, result["cpu"])
            if name == TOGETHER:
                written = _written(path)
                for rank in range(RANKS):
                    part.detail("share of the bytes", f"rank {rank}", written[rank] / sum(written.values()))
            remove(path)


def _written(path: Path) -> dict[int, int]:
    """Bytes by rank."""
    written: dict[int, int] = defaultdict(int)
    for file in (path / "data").rglob("*"):
        if file.is_file():
            written[int(file.name.split("-")[0])] += file.stat().st_size
    return written


def _restores(part: Part, ranks: Ranks, options: Options) -> None:
    path = options.folder / "ranks"
    ranks("take", path=str(path), alone=False, options={})
    for number in range(options.rounds):
        names = list(RESTORES)
        for name in names if number % 2 == 0 else names[::-1]:
            how, storage_options = RESTORES[name]
            make_cold(path)
            result = ranks("restore", path=str(path), how=how, options=storage_options)
            part.add("restore, cold", name, result["seconds"])
            part.detail("restore, CPU seconds", name, result["cpu"])
        for how in ("direct", "share"):
            ranks("restore", path=str(path), how="direct", options={"io": "buffered"})  # into the page cache
            part.add("restore, warm", how, ranks("restore", path=str(path), how=how, options={})["seconds"])
    remove(path)


def _from_far(part: Part, ranks: Ranks, options: Options) -> None:
    server = Server(FAR)
    try:
        storage_options = {"endpoint_url": server.url, "region": "us-east-1", "secret_access_key": SECRET}
        storage_options["access_key_id"] = "AKIDBENCH"
        url = "s3://bucket/ranks"
        ranks("take", path=url, alone=False, options=storage_options)
        for number in range(min(options.rounds, 3)):
            for how in ("direct", "share") if number % 2 == 0 else ("share", "direct"):
                server.requests()
                result = ranks("restore", path=url, how=how, options=storage_options)
                part.add("restore, far store", how, result["seconds"])
                part.detail("requests to the far store", how, float(server.requests()))
    finally:
        server.close()


def _print(part: Part) -> None:
    print(f"\n== {part.title}: {RANKS} ranks on gloo, {part.facts['bytes'] / report.GIB:.2f} GiB replicated")
    takes = part.series["take"]
    rows = [[name, report.ratio(values, takes[ALONE]), report.spread(values)] for name, values in takes.items()]
    report.print_table("take", ["", "rate of 1 process", "seconds"], rows)
    shares = [median(values) * RANKS for values in part.details["share of the bytes"].values()]
    print(f"bytes of a rank, of an even share: {min(shares):.3f} to {max(shares):.3f}")
    for operation in ("restore, cold", "restore, warm", "restore, far store"):
        series = part.series[operation]
        rows = [
            [name, report.ratio(values, series["direct"]), report.spread(values)] for name, values in series.items()
        ]
        report.print_table(operation, ["", "times as fast as direct", "seconds"], rows)
